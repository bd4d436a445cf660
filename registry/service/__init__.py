"""What the registry does, over the store and the bytes. Read registry.py first."""
