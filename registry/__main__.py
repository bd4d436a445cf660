"""`python -m registry` is the command `metadata-registry`."""

from registry.cli import main

main()
