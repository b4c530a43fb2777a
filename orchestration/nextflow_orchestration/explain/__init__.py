"""Where a page, an image or a sample came from, and what became of it."""
