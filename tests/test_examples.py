"""The examples, run as their readers run them."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.models import TEXT, make_model
from tests.support import ROOT, Server


class Example:
    """A running example and the lines that it prints."""

    def __init__(self, name: str, *arguments: str, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"XDG_CACHE_HOME": str(home)},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip())

    def line(self) -> str:
        """The next line that it prints."""
        return self._lines.get(timeout=30)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join()
        return code


@contextmanager
def example(name: str, *arguments: str, home: Path) -> Iterator[Example]:
    running = Example(name, *arguments, home=home)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()
        assert running.process.stdout is not None
        running._reader.join()
        running.process.stdout.close()


def test_a_worker_and_a_frontend_find_each_other(server: Server, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    discovery = f"file:{tmp_path / 'discovery'}"
    where = ("--discovery", discovery, "--url", server.url)
    models = ("--to", str(tmp_path / "models"))
    with (
        example("frontend.py", *where, *models, home=tmp_path / "cache") as frontend,
        example(
            "worker.py", str(model), "Org/Tiny", *where, "--lora", "law", home=tmp_path
        ) as worker,
    ):
        assert worker.line().startswith("cards will say that the files are at http://127.0.0.1:")
        assert worker.line() == "serving Org/Tiny: 9 files"
        assert worker.line() == "serving law on it"
        # The base model is published first.
        assert frontend.line() == "Org/Tiny: 9 files, 9 downloaded"
        assert re.fullmatch(rf"Org/Tiny: \d+ tokens in '{TEXT}'", frontend.line())
        assert frontend.line() == "law: 9 files, 0 downloaded"
        assert re.fullmatch(rf"law: \d+ tokens in '{TEXT}'", frontend.line())
        assert worker.stop(signal.SIGTERM) == 0
        assert worker.line() == "detached"
        gone = sorted(frontend.line().split("/")[-1] == "law" for _ in range(2))
        assert gone == [False, True]
    assert server.client.get("/v1/artifacts").json()["artifacts"] == []


def test_a_frontend_says_what_it_cannot_use(server: Server, tmp_path: Path) -> None:
    store = tmp_path / "discovery/v1/mdc"
    store.mkdir(parents=True)
    file = {"path": f"{server.url}/nothing", "checksum": f"blake3:{0:064}", "size": 1}
    card = {"display_name": "x", "slug": "x", "extra_files": [file]}
    (store / "n%2Fc%2Fe%2F1").write_text(json.dumps({"card_json": card}))
    where = ("--discovery", f"file:{tmp_path / 'discovery'}", "--to", str(tmp_path / "models"))
    with example("frontend.py", *where, home=tmp_path / "cache") as frontend:
        assert frontend.line().startswith("cannot use n/c/e/1: ")
    assert not (tmp_path / "models").exists()
