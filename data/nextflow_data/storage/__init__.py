"""Where do bytes lie, and how do they get there? Disks, object stores and public archives under one name."""
