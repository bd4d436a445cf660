"""Bytes: which files may be held, whose bytes answer a read, and how much of them is in memory."""
