"""The rules that come with the project, one a file."""
