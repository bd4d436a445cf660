"""`metadata-registry demo`: a fleet to look at, which leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2

from tests.commands import run_here
from tests.support import assert_sound, wait_for

BROWSER = {"accept": "text/html"}


def start(*words: object, **variables: str) -> tuple[subprocess.Popen[str], str]:
    """The command in a terminal of its own, and where its service is."""
    process = subprocess.Popen(
        [sys.executable, "-m", "registry", "demo", "--port", "0", *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **variables},
    )
    assert process.stdout is not None
    for line in process.stdout:
        found = re.match(r"Open (http://\S+) in a browser", line)
        if found:
            return process, found[1]
    raise AssertionError(f"it ended with {process.wait()}")


def end(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C does, which everybody in the terminal hears."""
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stdout is not None
    process.stdout.close()


def test_a_demo_has_something_of_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process, url = start(TMPDIR=str(tmp_path), REGISTRY_TOKEN_FILE="/nonexistent")
    try:
        (folder,) = tmp_path.iterdir()

        def shows(path: str, *texts: str) -> bool:
            page = httpx2.get(url + path, headers=BROWSER, timeout=30).text
            return all(text in page for text in texts)

        wrong = ("unresolved_conflict", "immortal_owner", "drifted_ref", "unserveable_entry")
        wait_for(lambda: shows("/ui/audit", *wrong))
        wait_for(lambda: shows("/ui/events?kind=removed", "its last holder detached"))
        # A lease that nobody renews lapses, and one is renewed.
        wait_for(lambda: shows("/ui/owners", "suspect"))
        assert shows("/ui/models", "llama-3-8b-instruct/_base", "sql-assistant", "only one")
        assert_sound(folder / "registry.db")
    finally:
        end(process)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_goes_on_in_its_directory_and_touches_no_registry_of_others(tmp_path: Path) -> None:
    for _ in range(2):
        process, _ = start("--directory", tmp_path / "kept")
        end(process)
    assert_sound(tmp_path / "kept" / "registry.db")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "registry.db").write_bytes(b"precious")
    done = run_here("demo", "--directory", tmp_path / "ours")
    assert done.returncode == 2
    assert "no demo made" in done.stderr
    assert (tmp_path / "ours" / "registry.db").read_bytes() == b"precious"
