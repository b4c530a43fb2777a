"""How does a page become ordered text and images."""
