"""One file an area, one function a check; what a check needs that is heavy it imports itself."""
