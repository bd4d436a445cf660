"""The nginx of docs/performance.md does what the page says, and that of deploy/ keeps a fleet's
frontends going when a replica dies: they are started as they stand there."""

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
from tests.ports import free_port
from tests.support import JSON, ROOT, Server, assert_sound, copied, owner_body, wait_for

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


def before(folder: Path, server: Server) -> dict[str, str]:
    """What is another in the page's configuration here."""
    return {
        "127.0.0.1:8090": "{}:{}".format(*server.address),
        "/var/cache/nginx/metadata": str(folder / "cache"),
    }


def before_replicas(folder: Path, *replicas: str) -> dict[str, str]:
    """What is another in deploy/nginx.conf here."""
    servers = "\n".join(f"server {each} max_fails=1 fail_timeout=5s;" for each in replicas)
    return {
        "server replica:8090 max_fails=1 fail_timeout=5s;": servers,
        "/tmp/metadata": str(folder / "cache"),
    }


@contextmanager
def nginx(folder: Path, text: str, here: dict[str, str]) -> Iterator[str]:
    """nginx with a configuration, some of it replaced, on a free port."""
    port = free_port()
    (listen,) = re.findall(r"listen \d+;", text)
    for shown, replaced in {listen: f"listen 127.0.0.1:{port};", **here}.items():
        assert shown in text
        text = text.replace(shown, replaced)
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
            nginx(tmp_path / "nginx", configuration(), before(tmp_path / "nginx", server)) as url,
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
        folder = tmp_path / "nginx"
        with nginx(folder, configuration(), before(folder, server)) as url:
            body = {"owner": owner_body(OWNER), "artifacts": []}
            answer = httpx2.post(f"{url}/v1/registrations", json=body, headers=JSON)
            assert answer.status_code == 200
    assert_sound(tmp_path / "registry.db")


def test_a_fleets_nginx_asks_another_replica_when_one_dies(tmp_path: Path) -> None:
    text = (ROOT / "deploy/nginx.conf").read_text()
    folder = tmp_path / "nginx"
    folder.mkdir()
    with Server(tmp_path / "registry.db") as first, Server(tmp_path / "registry.db") as second:
        here = before_replicas(folder, *("{}:{}".format(*each.address) for each in (first, second)))
        with nginx(folder, text, here) as url, httpx2.Client(base_url=url, timeout=30) as client:
            assert first.upload(CONTENT).status_code == 201
            body = {"owner": owner_body(OWNER), "artifacts": [copied(KEY, CONTENT)]}

            def all_goes_on() -> None:
                for _ in range(10):
                    answers = [client.post("/v1/registrations", json=body), client.get("/health")]
                    answers.append(client.get(f"/v1/artifacts/{KEY}"))
                    answers.append(client.get(PATH))
                    assert [answer.status_code for answer in answers] == [200] * 4

            all_goes_on()
            second.kill()
            all_goes_on()
    assert_sound(tmp_path / "registry.db")
