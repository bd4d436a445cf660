"""Where the parser of a connection is."""

from __future__ import annotations

from enum import Enum


class Part(Enum):
    """What of a request is being parsed."""

    BETWEEN = "none: the next has not begun"
    HEAD = "its head"
    BODY = "what follows a head that was taken"
