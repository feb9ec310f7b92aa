"""Files on the disk: whole or not there, one run in a folder, and nobody's own replaced."""
