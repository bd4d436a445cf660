"""The one lock that everybody takes who writes."""

from __future__ import annotations

WRITE_LOCK = 0x4D524547
"""The key of the advisory lock, "MREG": of the replicas' write transactions, and of a change of the
schema. It is the database's, so that registries in two of its schemas wait for each other."""
