"""Ports that programs are told, while other programs and connections take theirs."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.ports import BLOCK, FIRST, LAST, free_port

OTHER = "from tests.ports import free_port; print(*(free_port() for _ in range(200)), flush=True)"


def test_a_port_is_handed_out_to_one_process_alone() -> None:
    ours = {free_port() for _ in range(2 * BLOCK)}
    with ExitStack() as stack:
        for _ in range(3):
            other = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", f"{OTHER}; input()"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=Path(__file__).parents[1],
                )
            )
            stack.callback(other.kill)
            assert other.stdout is not None
            theirs = {int(each) for each in other.stdout.readline().split()}
            assert len(theirs) > BLOCK // 2
            assert not theirs & ours
            ours |= theirs
    assert all(FIRST <= port <= LAST for port in ours)


def test_a_port_that_somebody_listens_on_is_left_out() -> None:
    with ExitStack() as stack:
        taken = set()
        for _ in range(5):
            port = free_port()
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
            taken.add(port)
        assert not taken & {free_port() for _ in range(2 * BLOCK)}


def test_no_connection_is_given_one_of_them() -> None:
    """Unless somebody has told the system to give these too (net.ipv4.ip_local_port_range)."""
    with ExitStack() as stack:
        for _ in range(200):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            assert not FIRST <= listener.getsockname()[1] <= LAST
