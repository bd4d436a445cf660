"""Environment variables that begin like ours: others' by design, and slips."""

from __future__ import annotations

import re

PREFIX = "REGISTRY_"
"""What the name of every environment variable of the service begins with."""
_names_service = re.compile(r"REGISTRY(_\w+)?_SERVICE_(HOST|PORT(_\w+)?)", re.ASCII).fullmatch
_names_port = re.compile(r"REGISTRY(_\w+)?_PORT(_\d+_(TCP|UDP|SCTP))?", re.ASCII).fullmatch
_names_part_of_port = re.compile(
    r"REGISTRY(_\w+)?_PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)", re.ASCII
).fullmatch
_is_address = re.compile(r"(tcp|udp|sctp)://.*").fullmatch


def is_service_link(variable: str, text: str) -> bool:
    """Whether Kubernetes, or Docker for a link, may have set a variable.

    Every container gets REGISTRY_SERVICE_HOST, REGISTRY_PORT=tcp://... and the like for a Service
    in its namespace that is named `registry`, and REGISTRY_AUTH_PORT=... for `registry-auth`.
    """
    if _names_service(variable) or _names_part_of_port(variable):
        return True
    return bool(_names_port(variable) and _is_address(text))


def is_slip(variable: str, own: str) -> bool:
    """Whether a variable is one of ours but for a letter, or two in a long name."""
    name = own.removeprefix(PREFIX)
    allowed = 0 if len(name) < 4 else 1 if len(name) < 8 else 2
    return _distance(variable.removeprefix(PREFIX).upper(), name) <= allowed


def _distance(one: str, other: str) -> int:
    """How many letters have to be added, dropped, changed or swapped with their neighbour."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and (a, b) == (other[j - 2], one[i - 2]):
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]
