"""What all packages share: sections of the recipe, sockets, refusals, files written whole, signals, excerpts."""
