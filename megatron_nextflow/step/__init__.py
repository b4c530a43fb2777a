"""One optimizer step over processes in a parallel layout."""
