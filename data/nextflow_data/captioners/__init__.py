"""Words for images: the interface, and the captioners behind it."""
