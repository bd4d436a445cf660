"""The nginx of docs/performance.md does what the page says: it is started as it stands there."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from registry.core.records import ArtifactKey, Owner
from tests.support import JSON, ROOT, Server, assert_sound, owner_body, wait_for

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/bin")
KEY = ArtifactKey("model", "_base", "config.json")
PATH = f"/v1/metadata/{KEY}"
CONTENT = b'{"model_type": "llama"}'
OWNER = Owner("dynamo", "backend", "generate", 7)

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def configuration() -> str:
    """The one nginx block of the page."""
    page = (ROOT / "docs" / "performance.md").read_text()
    (block,) = re.findall(r"^```nginx\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return str(block)


@contextmanager
def nginx(folder: Path, registry: str) -> Iterator[str]:
    """nginx in front of a registry, with the documented configuration, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = configuration()
    for shown, here in (
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("127.0.0.1:8090", registry),
        ("/var/cache/nginx/metadata", str(folder / "cache")),
    ):
        assert shown in text
        text = text.replace(shown, here)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr error;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{text}\n}}\n"
    )
    assert NGINX is not None
    command = [NGINX, "-e", "stderr", "-p", str(folder), "-c", str(path)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        wait_for(lambda: process.poll() is not None or connects(port))
        assert process.poll() is None
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_nginx_serves_from_its_cache_and_notices_what_changes(tmp_path: Path) -> None:
    with Server(tmp_path / "registry.db") as server:
        server.register_copies(OWNER, {KEY: CONTENT})
        (tmp_path / "nginx").mkdir()
        with (
            nginx(tmp_path / "nginx", "{}:{}".format(*server.address)) as url,
            httpx2.Client(base_url=url) as client,
        ):
            first, second = client.get(PATH), client.get(PATH)
            assert [answer.content for answer in (first, second)] == [CONTENT] * 2
            assert [answer.headers["x-cache"] for answer in (first, second)] == ["MISS", "HIT"]
            assert second.headers["etag"] == server.fetch(KEY).headers["etag"]

            same = client.get(PATH, headers={"if-none-match": second.headers["etag"]})
            assert (same.status_code, same.content) == (304, b"")
            part = client.get(PATH, headers={"range": "bytes=1-5"})
            assert (part.status_code, part.content) == (206, CONTENT[1:6])
            assert client.head(PATH).headers["content-length"] == str(len(CONTENT))
            assert client.get("/v1/metadata/model/_base/other.json").status_code == 404

            server.register_copies(OWNER, {KEY: b"other bytes"})
            wait_for(lambda: client.get(PATH).content == b"other bytes", 10)
            assert server.unregister(OWNER).status_code == 200
            wait_for(lambda: client.get(PATH).status_code == 404, 10)
    assert_sound(tmp_path / "registry.db")


def test_writes_go_through_nginx_to_the_registry(tmp_path: Path) -> None:
    with Server(tmp_path / "registry.db") as server:
        (tmp_path / "nginx").mkdir()
        with nginx(tmp_path / "nginx", "{}:{}".format(*server.address)) as url:
            body = {"owner": owner_body(OWNER), "artifacts": []}
            answer = httpx2.post(f"{url}/v1/registrations", json=body, headers=JSON)
            assert answer.status_code == 200
    assert_sound(tmp_path / "registry.db")
