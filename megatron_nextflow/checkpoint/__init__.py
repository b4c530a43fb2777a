"""What is saved, how it is made sure of, and how it is read back."""
