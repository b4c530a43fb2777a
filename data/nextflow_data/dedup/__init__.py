"""Which documents and images are copies of one another."""
