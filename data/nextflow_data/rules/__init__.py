"""What is kept and why: text, image and document rules."""
