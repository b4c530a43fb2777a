"""How a document becomes text ids and image codes."""
