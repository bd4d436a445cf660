"""The image: the steps of its Containerfile, run as they stand, make something that serves as any
user, on a read-only root, without a home, as process 1."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.images import Image, of_image, started
from tests.support import MODEL, assert_sound

MOST_S = 30
MODELS = ("--ro-bind", MODEL, "/models/mini")

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None or shutil.which("nsenter") is None,
    reason="there is no bubblewrap, or no nsenter",
)


@pytest.mark.timeout(900)
def test_what_the_steps_make_serves_is_probed_and_ends_as_the_image_says(tmp_path: Path) -> None:
    image = Image(tmp_path)
    entry, command = of_image("ENTRYPOINT").words, of_image("CMD").words
    probe = of_image("HEALTHCHECK").rest.partition("CMD ")[2]

    refused = run([*image.box(), *entry, *command])
    assert refused.returncode == 2
    assert "everybody may change everything" in refused.stderr

    made = run([*image.box(), *entry, *TOKEN])
    assert made.returncode == 0, made.stderr
    (token,) = re.findall(r"\bmreg_\S+", made.stdout)

    box = image.box(MODELS, REGISTRY_TOKEN_FILE="/data/tokens.toml")
    with started(box, [*entry, *command]) as container:
        assert container.outer.stdout is not None
        assert container.outer.stdout.readline() == "listening on http://0.0.0.0:8090\n"
        container.execute(*re.findall(r'"([^"]+)"', probe))
        named = ["--name", "mini", "--endpoint", "a/b/c", "--instance-id", "1"]
        attach = [*entry, "attach", "/models/mini", *named]
        assert "error: This call needs" in container.execute(*attach, code=1)
        container.execute(*attach, REGISTRY_TOKEN=token)
        container.execute(*entry, "fetch", "mini", "--to", "/tmp/fetched")
        container.execute(*entry, "audit")
        wrote = container.execute("sh", "-c", "for at in /opt/x /x /usr/x; do touch $at; done; :")
        assert wrote.count("Read-only file system") == 3
        os.kill(container.pid, signal.SIGTERM)
        _, errors = container.outer.communicate(timeout=MOST_S)
        assert container.outer.returncode == 0, errors
    assert "Traceback" not in errors
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"registry.db", "tokens.toml"}
    assert_sound(tmp_path / "data/registry.db")


TOKEN = ["token", "new", "--role", "admin", "--token-file", "/data/tokens.toml"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
