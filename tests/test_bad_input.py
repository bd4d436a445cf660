"""What nobody should send: the documented problem comes back, nothing is written, and the service
serves on."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.core.records import ArtifactKey
from tests.exchanges import (
    Answer,
    Line,
    key_of,
    new_slug,
    problem_of,
    rows_of,
    running,
    settle,
    traceback_of,
    worker,
)
from tests.places import Places
from tests.support import JSON, Server, checksum, copied, owner_body

MAX_BODY_BYTES = 4 << 20
MAX_ARTIFACTS = 1000
MAX_BLOB_BYTES = 65_536
MAX_MANIFEST_BYTES = 4 * MAX_BLOB_BYTES

KEPT = ArtifactKey("kept", "_base", "config.json")
CONTENT = b"kept, whatever comes"
CHECKSUM = checksum(CONTENT)
HELD = {"slug": "other", "suffix": "_base", "filename": "f", "checksum": CHECKSUM}


@pytest.fixture(scope="module")
def running_server(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("bad-input")
    limits: dict[str, Any] = {
        "max_blob_bytes": MAX_BLOB_BYTES,
        "max_manifest_bytes": MAX_MANIFEST_BYTES,
    }
    with (
        places.at(folder) as place,
        running(place, artifact_root=folder, **limits) as server,
    ):
        assert server.register_copies(worker("kept"), {KEPT: CONTENT}).status_code == 200
        yield server


@pytest.fixture
def shared(running_server: Server) -> Iterator[Server]:
    """A service which, when the test is over, has the rows that it had before, and serves."""
    before, log_length = rows_of(running_server.place), len(running_server.log)
    yield running_server
    settle(running_server)
    assert rows_of(running_server.place) == before
    assert running_server.fetch(KEPT).content == CONTENT
    assert traceback_of(running_server, log_length) == ""


def manifest(**fields: Any) -> dict[str, Any]:
    return {"owner": owner_body(worker("bad")), "artifacts": [HELD], **fields}


def post(server: Server, body: str | bytes, **headers: str) -> Any:
    content = body.encode() if isinstance(body, str) else body
    return server.client.post("/v1/registrations", content=content, headers={**JSON, **headers})


def test_what_these_tests_vary_would_be_taken_if_it_were_not_varied(
    running_server: Server,
) -> None:
    assert post(running_server, json.dumps(manifest())).status_code == 200
    assert running_server.unregister(worker("bad")).json()["released"] == 1


# JSON that is none

NO_JSON: dict[str, str | bytes] = {
    "nothing": "",
    "white space": " \n",
    "half": json.dumps(manifest())[:-20],
    "something behind": json.dumps(manifest()) + "x",
    "two": json.dumps(manifest()) * 2,
    "a comma too many": json.dumps(manifest()).replace("}]", "},]"),
    "single quotes": json.dumps(manifest()).replace('"', "'"),
    "a comment": "/* */" + json.dumps(manifest()),
    "not a number": json.dumps(manifest(lease_ttl_s=float("nan"))),
    "infinity": json.dumps(manifest(lease_ttl_s=float("inf"))),
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(manifest()).encode(),
    "UTF-16": json.dumps(manifest()).encode("utf-16"),
    "a control character in a string": json.dumps(manifest()).replace("other", "o\nher"),
    "a lone surrogate": json.dumps(manifest()).replace("other", "\\ud800"),
    "two lone surrogates": json.dumps(manifest()).replace("other", "\\udc00\\ud800"),
    "invalid UTF-8 in a value": json.dumps(manifest()).encode().replace(b"other", b"\xff\xfe"),
    "invalid UTF-8 in a name": json.dumps(manifest()).encode().replace(b"owner", b"\xc0\xaf"),
    "overlong UTF-8": json.dumps(manifest()).encode().replace(b"other", b"\xc1\xa1"),
    "NUL behind": json.dumps(manifest()) + "\0",
    "null": "null",
    "a number": "1",
    "a text": '"owner"',
    "a list": "[]",
    "an empty object": "{}",
    "a list of manifests": json.dumps([manifest()]),
    "100,000 brackets": "[" * 100_000,
    "100,000 brackets that are closed": "[" * 100_000 + "]" * 100_000,
    "100,000 objects": '{"owner":' * 100_000,
    "100,000 brackets as artifacts": json.dumps(manifest()).replace("[{", "[" * 100_000 + "{"),
    "100,000 brackets as a name": json.dumps(manifest()).replace('"other"', "[" * 100_000),
    "100,000 brackets in an unknown field": '{"x":' + "[" * 100_000 + "]" * 100_000 + "}",
    "100,000 brackets in an unknown field of an artifact": json.dumps(manifest()).replace(
        "[{", '[{"x":' + "[" * 100_000
    ),
    "a million digits": json.dumps(manifest(lease_ttl_s=0)).replace("0}", "1" * 1_000_000 + "}"),
}


@pytest.mark.parametrize("name", NO_JSON)
def test_a_body_that_is_no_manifest_is_refused(shared: Server, name: str) -> None:
    problem_of(post(shared, NO_JSON[name]), 422, "invalid")


# Fields

LONG = "x" * 256
WRONG_NAMES: list[object] = [
    *(None, 1, True, [], {}, "", " ", ".", "..", "a b", "a/b", "a\\b", "a%2fb", "é", "a\0", "a\n"),
    *("a:b", "\u200b", "\U0001f600", LONG),
]
WRONG_SLUGS: list[object] = [
    *(None, 1, True, [], {}, "", "_base", "_x", "-x", "UPPER", "a.b", "a b", "a/b", "é", "a\n"),
    *("a\0", "ſ", "\u0131", LONG),
]
WRONG_SUFFIXES = [wrong for wrong in WRONG_SLUGS if wrong != "_base"] + ["_Base", "_base2"]
WRONG_FILENAMES: list[object] = [
    *(None, 1, True, [], {}, "", ".", "..", "a/b", "/", "a\\b", "a\0", "\n", "a\tb", "\x1b[31m"),
    *("\x7f", "\x85", "\x9f", LONG, "é" * 128, "\U0001f600" * 64),
]
WRONG_CHECKSUMS: list[object] = [
    *(1, True, [], {}, "", "x", CHECKSUM[7:], CHECKSUM[:-1], CHECKSUM + "0", CHECKSUM + "\n"),
    *(CHECKSUM.upper(), CHECKSUM.replace("blake3", "sha256"), " " + CHECKSUM),
    *("blake3:" + "g" * 64, "blake3:" + "\u0663" * 64),
]
WRONG_SIZES: list[object] = [-1, 1.5, "1", True, [], {}, -(10**30)]
WRONG_LEASES: list[object] = [
    *(0, -1, 0.5, 0.999, 604_801, 10**18, 10**400, 1e308, -1e308, 5e-324, "60", True, [], {}),
]
WRONG: dict[str, list[object]] = {
    "namespace": WRONG_NAMES,
    "component": WRONG_NAMES,
    "endpoint": WRONG_NAMES,
    "lora_slug": [wrong for wrong in WRONG_SLUGS if wrong is not None],
    "slug": WRONG_SLUGS,
    "suffix": WRONG_SUFFIXES,
    "filename": WRONG_FILENAMES,
    "checksum": WRONG_CHECKSUMS,
    "size": WRONG_SIZES,
    "path": [1, True, [], {}, "", "\0", "/" + "x" * 4096],
    "lease_ttl_s": WRONG_LEASES,
    "worker_name": [wrong for wrong in WRONG_NAMES if wrong is not None],
    "owner": [None, 1, "a/b/c/1/_base", [], {}],
    "artifacts": [None, 1, "x", {}, [None], [1], ["x"], [[]], [{}]],
}
OF_OWNER = ("namespace", "component", "endpoint", "lora_slug")
OF_ARTIFACT = ("slug", "suffix", "filename", "checksum", "size", "path")


def varied(field: str, value: object) -> dict[str, Any]:
    body = manifest()
    place = body
    if field in OF_OWNER:
        place = body["owner"]
    elif field in OF_ARTIFACT:
        place = body["artifacts"][0] = dict(HELD)
    place[field] = value
    return body


@pytest.mark.parametrize("field", WRONG)
def test_a_field_with_a_wrong_value_is_refused_and_named(shared: Server, field: str) -> None:
    for value in WRONG[field]:
        answer = post(shared, json.dumps(varied(field, value)))
        problem = problem_of(answer, 422, "invalid")
        named = "lease" if field == "lease_ttl_s" else field
        assert named in problem["detail"] or "artifact" in problem["detail"], (value, problem)
        assert len(problem["detail"]) < 1000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(field, None) for field in ("checksum",)],
        ("owner", "left out"),
        ("artifacts", "left out"),
        *[(field, "left out") for field in (*OF_OWNER[:3], *OF_ARTIFACT[:4])],
    ],
)
def test_a_field_that_is_needed_cannot_be_left_out(
    shared: Server, field: str, value: str | None
) -> None:
    body = varied(field, value)
    if value is not None:
        place = body["owner"] if field in OF_OWNER else body["artifacts"][0]
        (place if field in (*OF_OWNER, *OF_ARTIFACT) else body).pop(field)
    problem_of(post(shared, json.dumps(body)), 422, "invalid")


@pytest.mark.parametrize("where", ["the manifest", "the owner", "an artifact"])
@pytest.mark.parametrize("name", ["x", "", "Owner", "lease_ttl_ms", "state", "__class__", "ﬁeld"])
def test_unknown_fields_are_refused(shared: Server, where: str, name: str) -> None:
    body = manifest()
    if where == "the manifest":
        body[name] = None
    elif where == "the owner":
        body["owner"][name] = 1
    else:
        body["artifacts"] = [{**HELD, name: "x"}]
    problem_of(post(shared, json.dumps(body)), 422, "invalid")


@pytest.mark.parametrize("lease_ttl_s", [1, 1.0, 1.5, 604_800, None])
def test_a_lease_within_its_limits_is_taken(
    running_server: Server, lease_ttl_s: float | None
) -> None:
    answer = post(running_server, json.dumps(manifest(lease_ttl_s=lease_ttl_s)))
    lease = answer.json()["lease"]
    assert (lease and lease["ttl_s"]) == lease_ttl_s
    running_server.unregister(worker("bad"))


WHOLE = {"7.0": 7, "70e-1": 7, "9007199254740993.0": 2**53 + 1, "18446744073709551615.0": 2**64 - 1}
NOT_WHOLE = ["7.5", "7e-1", "1e30", "1e400", "1e999999999999", "18446744073709551616.0", "-7.0"]


@pytest.mark.parametrize("number", WHOLE)
def test_a_whole_number_may_be_written_with_a_point(running_server: Server, number: str) -> None:
    body = json.dumps(manifest(owner=owner_body(worker("bad")) | {"instance_id": 77_777_777}))
    answer = post(running_server, body.replace("77777777", number))
    assert answer.status_code == 200, answer.text
    owner = answer.json()["owner"]
    assert owner["instance_id"] == str(WHOLE[number])
    running_server.client.delete(
        f"/v1/owners/{owner['namespace']}/{owner['component']}/{owner['endpoint']}/"
        f"{owner['instance_id']}/_base"
    ).raise_for_status()


@pytest.mark.parametrize("number", NOT_WHOLE)
def test_what_is_no_whole_number_is_no_instance_id(shared: Server, number: str) -> None:
    body = json.dumps(manifest(owner=owner_body(worker("bad")) | {"instance_id": 77_777_777}))
    problem_of(post(shared, body.replace("77777777", number)), 422, "invalid")


@pytest.mark.parametrize("size", [len(CONTENT) + 1, 0, 2**53 + 1, 2**63, 2**64, 10**400])
def test_a_size_that_is_not_the_contents_is_a_mismatch(shared: Server, size: int) -> None:
    answer = post(shared, json.dumps(manifest(artifacts=[{**HELD, "size": size}])))
    assert answer.status_code == 422
    assert answer.json()["code"] in ("checksum_mismatch", "invalid")


# Media types


@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "application/json5",
        "application/problem+json",
        "application/json, text/plain",
        "*/*",
    ],
)
def test_json_under_another_media_type_is_415(shared: Server, media_type: str | None) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    body = json.dumps(manifest()).encode()
    answer = shared.client.post("/v1/registrations", content=body, headers=headers)
    problem_of(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "media_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json;x=y"]
)
def test_the_media_type_of_json_may_have_parameters_and_any_case(
    running_server: Server, media_type: str
) -> None:
    answer = post(running_server, json.dumps(manifest()), **{"content-type": media_type})
    assert answer.status_code == 200
    running_server.unregister(worker("bad"))


# Too much


def sent(server: Server, *parts: bytes) -> Answer:
    with Line(server) as line:
        for part in parts:
            try:
                line.send(part)
            except OSError:
                break  # The service has answered and hung up before it had everything.
        return line.read_answer()


def head(target: str, *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += headers
    return "\r\n".join([*lines, "", ""]).encode()


def chunks(content: bytes, size: int) -> list[bytes]:
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    return [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_a_manifest_over_the_limit_of_bytes_is_refused(shared: Server, announced: bool) -> None:
    body = json.dumps(manifest()).encode().ljust(MAX_BODY_BYTES + 1)
    if announced:
        answer = sent(shared, head("/v1/registrations", f"Content-Length: {len(body)}"), body)
    else:
        start = head("/v1/registrations", "Transfer-Encoding: chunked")
        answer = sent(shared, start, *chunks(body, 65_536), b"0\r\n\r\n")
    problem_of(answer, 413, "too_large")


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_a_manifest_of_exactly_the_limit_is_taken(running_server: Server, announced: bool) -> None:
    body = json.dumps(manifest()).encode().ljust(MAX_BODY_BYTES)
    if announced:
        answer = sent(
            running_server, head("/v1/registrations", f"Content-Length: {len(body)}"), body
        )
    else:
        start = head("/v1/registrations", "Transfer-Encoding: chunked")
        answer = sent(running_server, start, *chunks(body, 1_000_000), b"0\r\n\r\n")
    assert answer.status_code == 200
    running_server.unregister(worker("bad"))


@pytest.mark.parametrize(
    ("target", "method"),
    [("/v1/registrations", "POST"), (f"/v1/blobs/{CHECKSUM}", "PUT")],
)
@pytest.mark.parametrize("length", [2**31, 2**63, 10**18])
def test_a_body_that_says_that_it_is_too_large_is_refused_before_it_comes(
    shared: Server, target: str, method: str, length: int
) -> None:
    answer = sent(shared, head(target, f"Content-Length: {length}", method=method))
    problem_of(answer, 413, "too_large")


def test_too_many_artifacts_are_refused(shared: Server) -> None:
    lines = [{**HELD, "filename": str(number)} for number in range(MAX_ARTIFACTS + 1)]
    answer = post(shared, json.dumps(manifest(artifacts=lines)))
    assert str(MAX_ARTIFACTS) in problem_of(answer, 413, "too_large")["detail"]


def test_as_many_artifacts_as_allowed_are_taken(running_server: Server) -> None:
    slug = new_slug()
    keys = [key_of(slug, str(number)) for number in range(MAX_ARTIFACTS)]
    answer = running_server.register(worker(slug), [copied(key, CONTENT) for key in keys])
    assert [each["outcome"] for each in answer.json()["artifacts"]] == ["created"] * MAX_ARTIFACTS
    assert running_server.unregister(worker(slug)).json()["released"] == MAX_ARTIFACTS


@pytest.mark.parametrize("source", ["copied", "in place"])
def test_a_manifest_of_too_many_bytes_is_refused(running_server: Server, source: str) -> None:
    slug, content = new_slug(), b"x" * MAX_BLOB_BYTES
    keys = [key_of(slug, str(number)) for number in range(5)]
    if source == "copied":
        running_server.upload(content)
        lines = [copied(key, content) for key in keys]
    else:
        path = running_server.place.folder / (slug)
        path.write_bytes(content)
        fields = ("slug", "suffix", "filename")
        lines = [{f: getattr(key, f) for f in fields} | {"path": str(path)} for key in keys]
    before = rows_of(running_server.place)
    problem_of(running_server.register(worker(slug), lines), 413, "too_large")
    assert rows_of(running_server.place) == before
    assert running_server.register(worker(slug), lines[:4]).status_code == 200


# Uploads


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        pytest.param(b"x" * (MAX_BLOB_BYTES + 1), 413, "too_large", id="too large"),
        pytest.param(b"other", 422, "checksum_mismatch", id="other bytes"),
        pytest.param(CONTENT[:-1], 422, "checksum_mismatch", id="a byte too few"),
        pytest.param(CONTENT + b"\n", 422, "checksum_mismatch", id="a byte too many"),
        pytest.param(b"", 422, "checksum_mismatch", id="nothing"),
    ],
)
def test_an_upload_that_is_not_what_it_says_is_refused(
    shared: Server, announced: bool, content: bytes, status: int, code: str
) -> None:
    name = checksum(b"never uploaded") if code == "checksum_mismatch" else checksum(content)
    target = f"/v1/blobs/{name}"
    if announced:
        length = f"Content-Length: {len(content)}"
        answer = sent(shared, head(target, length, method="PUT"), content)
    else:
        start = head(target, "Transfer-Encoding: chunked", method="PUT")
        answer = sent(shared, start, *chunks(content, 10_000), b"0\r\n\r\n")
    problem_of(answer, status, code)
    assert shared.client.head(target).status_code == 404


def test_an_upload_of_exactly_the_limit_is_taken(running_server: Server) -> None:
    assert running_server.upload(bytes(MAX_BLOB_BYTES)).status_code in (200, 201)


@pytest.mark.parametrize("method", ["PUT", "HEAD"])
@pytest.mark.parametrize(
    "name",
    [
        "x",
        CHECKSUM[7:],
        CHECKSUM[:-1],
        CHECKSUM + "0",
        CHECKSUM.upper(),
        CHECKSUM.replace("blake3", "sha256"),
        CHECKSUM + "%0A",
        "%00",
        "%FF",
    ],
)
def test_what_is_no_checksum_names_no_content(shared: Server, method: str, name: str) -> None:
    answer = shared.client.request(method, f"/v1/blobs/{name}", content=b"")
    assert answer.status_code == 422
    if method == "PUT":
        problem_of(answer, 422, "invalid")


def test_too_much_that_is_uploaded_and_not_registered_is_refused(
    serve: Callable[..., Server],
) -> None:
    server = serve(pending_upload_bytes=1000)
    contents = [bytes([number]) * 400 for number in range(3)]
    assert [server.upload(content).status_code for content in contents[:2]] == [201, 201]
    refused = server.upload(contents[2])
    problem_of(refused, 429, "uploads_pending")
    assert int(refused.headers["retry-after"]) > 0
    assert server.client.head(f"/v1/blobs/{checksum(contents[2])}").status_code == 404
    key = key_of("model")
    assert server.register(worker("model"), [copied(key, contents[0])]).status_code == 200
    assert server.upload(contents[2]).status_code == 201


# Connections that are cut

BODY = json.dumps(manifest()).encode()
CUT = {
    "a manifest within its body": [
        head("/v1/registrations", f"Content-Length: {len(BODY) + 1}"),
        BODY,
    ],
    "a manifest before its body": [head("/v1/registrations", f"Content-Length: {len(BODY)}")],
    "a manifest in chunks, before the last": [
        head("/v1/registrations", "Transfer-Encoding: chunked"),
        *chunks(BODY, 50),
    ],
    "a manifest within a chunk": [
        head("/v1/registrations", "Transfer-Encoding: chunked"),
        b"%x\r\n" % (len(BODY) + 1) + BODY,
    ],
    "an upload within its body": [
        head(f"/v1/blobs/{checksum(b'cut')}", "Content-Length: 4", method="PUT"),
        b"cut",
    ],
    "an upload in chunks, before the last": [
        head(f"/v1/blobs/{checksum(b'cut')}", "Transfer-Encoding: chunked", method="PUT"),
        *chunks(b"cut", 1),
    ],
    "an upload before its body": [
        head(f"/v1/blobs/{checksum(b'')}", "Content-Length: 1", method="PUT"),
    ],
    "a manifest that waits for a go-ahead": [
        head("/v1/registrations", "Content-Length: 100", "Expect: 100-continue"),
    ],
    "the headers": [head("/v1/registrations", "Content-Length: 100")[:-4]],
}


@pytest.mark.parametrize("how", ["closed", "half closed", "reset"])
@pytest.mark.parametrize("name", CUT)
def test_what_does_not_come_completely_is_not_done(shared: Server, name: str, how: str) -> None:
    with Line(shared) as line:
        for part in CUT[name]:
            line.send(part)
        match how:
            case "half closed":
                line.socket.shutdown(socket.SHUT_WR)
                while line.socket.recv(4096):
                    pass
            case "reset":
                line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    problem_of(shared.client.get("/v1/artifacts/other/_base/f"), 404, "not_registered")
    for content in (b"cut", b""):
        assert shared.client.head(f"/v1/blobs/{checksum(content)}").status_code == 404


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/metadata/\xff\xfe/_base/f HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/metadata/\xc3\xa9/_base/f HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /live HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"POST /live HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        bytes(10_000),
    ],
    ids=lambda data: repr(data[:80]),
)
def test_what_is_no_http_is_refused_or_cut_off(shared: Server, data: bytes) -> None:
    with Line(shared) as line:
        line.send(data)
        line.socket.shutdown(socket.SHUT_WR)
        answer = line.read_rest()
    assert b"500" not in answer.split(b"\r\n")[0]
    assert not answer.startswith(b"HTTP/1.1 2")


# Queries and paths


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *[("GET", f"/v1/artifacts?limit={limit}") for limit in ("0", "1001", "-1", "x", "1e3")],
        *[("GET", f"/v1/artifacts?limit={limit}") for limit in ("", "%D9%A3", "9" * 400, "1.0")],
        *[("GET", f"/v1/artifacts?after={after}") for after in ("x", "-1", "9" * 400, "%00", "")],
        *[("GET", f"/v1/owners?limit={limit}") for limit in ("0", "1001", "x")],
        *[("GET", f"/v1/owners?after={after}") for after in ("x", "a/b/c/007/_base", "%00")],
        ("GET", "/v1/artifacts?limit=1&limit=1"),
        ("GET", "/v1/artifacts?slug=a&slug=b"),
        ("GET", "/v1/artifacts?after=1&after=2"),
        ("GET", "/v1/artifacts?colour=red"),
        ("GET", "/v1/owners?limit=1&limit=2"),
        ("GET", "/v1/owners?slug=a"),
        ("GET", "/v1/owners/a/b/c/1/_base?x=1"),
        ("DELETE", "/v1/owners/kept/backend/generate/1/_base?force=true"),
        ("DELETE", "/v1/artifacts/kept/_base?dry_run=1"),
        ("GET", "/v1/artifacts/kept/_base/config.json?x=1"),
        ("POST", "/v1/registrations?dry_run=1"),
        ("PUT", f"/v1/blobs/{checksum(b'')}?x=1"),
        ("GET", "/v1/owners/a%20b/b/c/1/_base"),
        ("GET", "/v1/owners/./b/c/1/_base"),
        ("GET", "/v1/owners/a/b/c/1/_other"),
        ("GET", "/v1/owners/a/b/c/1/UPPER"),
        ("DELETE", "/v1/owners/a/b/c/1/%00"),
        ("DELETE", f"/v1/owners/{'a' * 256}/b/c/1/_base"),
        ("GET", "/v1/artifacts/UPPER/_base/f"),
        ("GET", "/v1/artifacts/a/_other/f"),
        ("GET", "/v1/artifacts/a/_base/%00"),
        ("GET", "/v1/artifacts/a/_base/%5C"),
        ("GET", "/v1/artifacts/a/_base/.."),
        ("GET", f"/v1/artifacts/a/_base/{'x' * 256}"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_a_call_does_not_take_is_refused(shared: Server, method: str, target: str) -> None:
    body = BODY if method == "POST" else b""
    with Line(shared) as line:
        line.send(head(target, f"Content-Length: {len(body)}", method=method) + body)
        problem_of(line.read_answer(), 422, "invalid")


@pytest.mark.parametrize(
    "target",
    [
        "/v1",
        "/v1/",
        "/v2/artifacts",
        "/v1/artifacts/",
        "/v1/artifacts/a",
        "/v1/artifacts/a/_base/b/c",
        "/v1/artifacts/a/_base/b%2Fc",
        "/v1/owners/a/b/c/1",
        "/v1/owners/a/b/c/1/_base/x",
        "/v1/owners/a%2Fb/b/c/1/_base/x",
        "/V1/artifacts",
        "//v1/artifacts",
        "/v1/blobs",
        "/live/",
        "/%00",
        "/%FF",
        "/..%2f..%2fetc/passwd",
    ],
)
def test_an_address_that_is_none_is_not_found(shared: Server, target: str) -> None:
    with Line(shared) as line:
        line.ask(target)
        problem_of(line.read_answer(), 404, "not_found")


@pytest.mark.parametrize(
    "value", ["%00", "%FF", "'; DROP TABLE entries; --", "%25", "\u0663", "x" * 5000]
)
@pytest.mark.parametrize("name", ["slug", "suffix", "filename", "checksum"])
def test_a_filter_that_nothing_can_match_finds_nothing(
    shared: Server, name: str, value: str
) -> None:
    answer = shared.client.get("/v1/artifacts", params={name: value})
    if answer.status_code == 200:
        assert answer.json() == {"artifacts": [], "next": None}
    else:
        problem_of(answer, 422, "invalid")


def test_words_of_sql_and_wildcards_are_names_like_others(running_server: Server) -> None:
    slug = new_slug()
    names = ["'; DROP TABLE entries; --", "%", "_", "*", "?", '"', "\u2028", "null", "-0", "$1"]
    contents = {key_of(slug, name): name.encode() for name in names}
    assert running_server.register_copies(worker(slug), contents).status_code == 200
    for key, content in contents.items():
        params = {"slug": slug, "filename": key.filename}
        [found] = running_server.client.get("/v1/artifacts", params=params).json()["artifacts"]
        assert found["checksum"] == checksum(content)
        assert running_server.client.get(found["url"]).content == content
    assert running_server.unregister(worker(slug)).json()["released"] == len(names)
