"""The records, under the name that programs import them by. See registry/core/records.py."""

from __future__ import annotations

from registry.core.records import *  # noqa: F403
