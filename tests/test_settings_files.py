"""Whatever stands where a setting's file should be: reading it ends, and says what is wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from registry import config
from registry.config import Settings
from registry.errors import SettingsError
from registry.network import environment
from registry.server import certificates, tokens
from registry.server.tokens import Role
from tests.support import Server, bearer, wait_for

READERS: dict[str, Callable[[Path], object]] = {
    "settings file": lambda path: config.load({}, {}, path),
    "token file": tokens.load,
    "token file to add to": lambda path: tokens.create(path, Role.ADMIN),
    "authorities": lambda path: environment.trust(str(path), {}),
    "tls_certificate": lambda path: certificates.certificate_of(
        Settings(tls_certificate=str(path))
    ),
    "tls_key": lambda path: certificates.certificate_of(
        Settings(tls_certificate=str(_certificate(path.parent)), tls_key=str(path))
    ),
}


def _certificate(folder: Path) -> Path:
    path = folder / "certificate.pem"
    authority = trustme.CA()
    authority.issue_cert("localhost").cert_chain_pems[0].write_to_path(str(path))
    return path


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a FIFO": (os.mkfifo, "is not a regular file"),
    "a link to a FIFO": (lambda path: _linked(path, os.mkfifo), "is not a regular file"),
    "a directory": (Path.mkdir, "is not a regular file"),
    "a socket": (_socket, "is not a regular file"),
    "an endless device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "a terminal": (lambda path: path.symlink_to("/dev/tty"), "is not a regular file"),
    "a terabyte": (_sparse, "it has more than 1"),
    "a circle of links": (lambda path: path.symlink_to(path), "cannot be read: Too many levels"),
    "a file as folder": (
        lambda path: _linked(path, Path.touch, "/x"),
        "cannot be read: Not a directory",
    ),
}


def _linked(path: Path, make: Callable[[Path], object], below: str = "") -> None:
    make(path.with_name("target"))
    path.symlink_to(str(path.with_name("target")) + below)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_file_is_refused_at_once_by_its_name(tmp_path: Path, reader: str, odd: str) -> None:
    path = tmp_path / "file"
    make, reason = ODD[odd]
    make(path)
    with pytest.raises((SettingsError, NotADirectoryError)) as raised:
        READERS[reader](path)
    assert reason.removeprefix("cannot be read: ") in str(raised.value)
    names = (str(path), str(path.with_name("target")), os.path.realpath(path))
    assert any(name in str(raised.value) for name in names)


def test_a_byte_order_mark_in_front_of_toml_is_no_part_of_it(tmp_path: Path) -> None:
    """Some editors write one."""
    settings = tmp_path / "settings.toml"
    settings.write_text("\ufeffport = 9\n")
    assert config.load({}, {}, settings).port == 9
    file = tmp_path / "tokens.toml"
    _, token = tokens.create(file, Role.ADMIN)
    file.write_text("\ufeff" + file.read_text())
    assert tokens.load(file).find(token) is not None
    _, another = tokens.create(file, Role.READ)
    assert None not in [tokens.load(file).find(each) for each in (token, another)]


def test_toml_that_is_nested_beyond_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("port = " + "[" * 100_000)
    with pytest.raises(SettingsError, match="is not TOML"):
        config.load({}, {}, path)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="is not TOML"):
        tokens.load(path)


@pytest.mark.parametrize("odd", ["a FIFO", "an endless device", "a terabyte"])
def test_sighup_with_an_odd_token_file_stops_nothing_and_changes_nothing(
    serve: Callable[..., Server], tmp_path: Path, odd: str
) -> None:
    file = tmp_path / "tokens.toml"
    _, token = tokens.create(file, Role.ADMIN)
    server = serve(token_file=file, token=token)
    file.unlink()
    ODD[odd][0](file)
    os.kill(server.process.pid, signal.SIGHUP)
    wait_for(lambda: "the tokens stay as they were" in server.log, 10)
    assert server.client.get("/v1/owners", headers=bearer(token)).status_code == 200
    assert server.stop() == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", [["serve", "--config"], ["serve", "--token-file"]])
def test_a_start_with_a_fifo_for_a_file_ends(tmp_path: Path, command: list[str]) -> None:
    os.mkfifo(tmp_path / "fifo")
    done = subprocess.run(
        [sys.executable, "-m", "registry", *command, tmp_path / "fifo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 2
    assert "is not a regular file" in done.stderr
