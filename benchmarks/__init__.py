"""How fast the registry is, measured against references in the same run: `make bench`."""
