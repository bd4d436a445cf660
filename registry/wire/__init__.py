"""JSON: what callers send and what they get, as types."""
