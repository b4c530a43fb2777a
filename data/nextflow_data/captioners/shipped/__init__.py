"""The captioners that come with the project, one a file."""
