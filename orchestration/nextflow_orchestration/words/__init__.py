"""What rules and rows are called in front of people."""
