"""Small domains of the project's own making, for trying everything without any data."""
