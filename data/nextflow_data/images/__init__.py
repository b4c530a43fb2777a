"""What is an image: its format, its size, what it looks like."""
