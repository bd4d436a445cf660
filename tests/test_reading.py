"""The read path over HTTP: what RFC 9110 asks of it, byte by byte."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from registry.core.records import ArtifactKey
from tests.exchanges import Line, journal, key_of, new_slug, problem_of, request, running, worker
from tests.places import Places
from tests.support import Server, checksum, copied, in_place

SIZE = 1000
CONTENT = bytes(value % 251 for value in range(SIZE))
ETAG = f'"{checksum(CONTENT)}"'
OTHER = f'"{checksum(b"other")}"'


@dataclass(frozen=True)
class Published:
    """A service with one file of 1000 bytes, and a copy of it under another key."""

    server: Server
    key: ArtifactKey
    url: str
    at_endpoint: str


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def shared(
    places: Places, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("reading")
    with places.at(folder) as place, running(place, artifact_root=root) as server:
        yield server


@pytest.fixture(scope="module", params=["copied", "in place"])
def published(request: pytest.FixtureRequest, shared: Server, root: Path) -> Published:
    key = key_of(new_slug())
    owner = worker(key.slug)
    if request.param == "copied":
        answer = shared.register_copies(owner, {key: CONTENT})
    else:
        path = root / f"{key.slug}.json"
        path.write_bytes(CONTENT)
        answer = shared.register(owner, [in_place(key, path)])
    assert answer.status_code == 200
    tail = f"{key.slug}/{key.suffix}/{key.filename}"
    return Published(
        shared,
        key,
        f"/v1/metadata/{tail}",
        f"/v1/metadata/{key.slug}/backend/generate/{tail}",
    )


def test_a_file_comes_with_exactly_the_documented_headers(published: Published) -> None:
    answer = published.server.client.get(published.url)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    headers = dict(answer.headers)
    assert headers.pop("date")
    assert headers == {
        "etag": ETAG,
        "content-length": str(SIZE),
        "content-type": "application/json",
        "accept-ranges": "bytes",
        "cache-control": "no-cache",
        "x-content-type-options": "nosniff",
    }


def test_an_etag_is_the_checksum_as_a_strong_tag(published: Published) -> None:
    etag = published.server.client.get(published.url).headers["etag"]
    assert re.fullmatch(r'"blake3:[0-9a-f]{64}"', etag)
    assert etag == ETAG


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [f"If-None-Match: {ETAG}"],
        ["If-None-Match: *"],
        [f"If-None-Match: {OTHER}"],
        [f"If-Match: {OTHER}"],
        [f"If-Match: {ETAG}"],
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", ["url", "at_endpoint", "missing"])
def test_head_answers_the_headers_of_get_and_no_body(
    published: Published, headers: list[str], shape: str
) -> None:
    target = f"{published.url}.missing" if shape == "missing" else getattr(published, shape)
    with Line(published.server) as line:
        line.ask(target, *headers, method="HEAD")
        line.ask(target, *headers)
        head, get = line.read_answer("HEAD"), line.read_answer()
    assert head.content == b""
    assert head.status_code == get.status_code
    each_its_own = dict.fromkeys(("date", "x-request-id"), "")
    assert {**head.headers, **each_its_own} == {**get.headers, **each_its_own}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([f"If-None-Match: {ETAG}"], 304),
        ([f"If-None-Match: W/{ETAG}"], 304),
        ([f"If-None-Match: {OTHER}, {ETAG}"], 304),
        ([f"If-None-Match: {OTHER},W/{ETAG}"], 304),
        ([f'If-None-Match: "a,b" , {ETAG} , "c"'], 304),
        ([f"If-None-Match: {OTHER}", f"If-None-Match: {ETAG}"], 304),
        (["If-None-Match: *"], 304),
        ([f"if-none-match:{ETAG}"], 304),
        ([f"If-None-Match: {OTHER}"], 200),
        ([f"If-None-Match: W/{OTHER}"], 200),
        ([f"If-None-Match: {checksum(CONTENT)}"], 200),
        (["If-None-Match:"], 200),
        ([f"If-None-Match: {ETAG[:-2]}"], 200),
        ([f"If-Match: {ETAG}"], 200),
        (["If-Match: *"], 200),
        ([f"If-Match: {OTHER}, {ETAG}"], 200),
        ([f"If-Match: {OTHER}", f"If-Match: {ETAG}"], 200),
        ([f"If-Match: {OTHER}"], 412),
        ([f"If-Match: W/{ETAG}"], 412),
        (["If-Match:"], 412),
        ([f"If-Match: {OTHER}", f"If-None-Match: {ETAG}"], 412),
        ([f"If-Match: {ETAG}", f"If-None-Match: {ETAG}"], 304),
        ([f"If-Match: {OTHER}", "Range: bytes=0-1"], 412),
        ([f"If-Match: {ETAG}", "Range: bytes=0-1"], 206),
        ([f"If-None-Match: {ETAG}", "Range: bytes=0-1"], 304),
        ([f"If-None-Match: {OTHER}", "Range: bytes=0-1"], 206),
        ([f"If-None-Match: {ETAG}", "Range: bytes=5000-"], 304),
        (["If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT"], 200),
        (["If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT"], 200),
    ],
    ids=str,
)
def test_a_condition_is_judged_as_rfc_9110_says(
    published: Published, headers: list[str], status: int
) -> None:
    with Line(published.server) as line:
        line.ask(published.url, *headers)
        answer = line.read_answer()
    assert answer.status_code == status
    if status == 200:
        assert answer.content == CONTENT
    if status == 206:
        assert answer.content == CONTENT[:2]
    if status == 412:
        problem_of(answer, 412, "precondition_failed")


def test_a_304_has_the_headers_that_a_cache_needs_and_no_body(published: Published) -> None:
    with Line(published.server) as line:
        line.ask(published.url, f"If-None-Match: {ETAG}")
        line.ask(published.url)
        not_modified, following = line.read_answer(), line.read_answer()
    assert not_modified.status_code == 304
    assert not_modified.headers["etag"] == ETAG
    assert not_modified.headers["cache-control"] == "no-cache"
    assert "transfer-encoding" not in not_modified.headers
    assert following.content == CONTENT


# Ranges


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-499", 0, 499),
        ("bytes=500-999", 500, 999),
        ("bytes=500-", 500, 999),
        ("bytes=999-", 999, 999),
        ("bytes=0-", 0, 999),
        ("bytes=0-1000", 0, 999),
        ("bytes=990-99999999999999999999999999", 990, 999),
        ("bytes=00000000000000000000000000000007-8", 7, 8),
        ("bytes=-1", 999, 999),
        ("bytes=-1000", 0, 999),
        ("bytes=-5000", 0, 999),
        ("bytes=-99999999999999999999999999", 0, 999),
        ("BYTES=0-1", 0, 1),
        ("bytes= 0-1", 0, 1),
        ("bytes=,0-1,,", 0, 1),
        ("bytes=0-1,5000-6000", 0, 1),
        ("bytes=1000-,-0,4-7", 4, 7),
    ],
)
def test_one_range_is_answered_with_its_bytes(
    published: Published, value: str, first: int, last: int
) -> None:
    answer = published.server.client.get(published.url, headers={"Range": value})
    assert answer.status_code == 206
    assert answer.content == CONTENT[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
    assert answer.headers["content-length"] == str(last + 1 - first)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["etag"] == ETAG
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "value",
    [
        "bytes=1000-",
        "bytes=1000-2000",
        "bytes=-0",
        "bytes=1000-,5000-6000,-0",
        "bytes=99999999999999999999999999-",
    ],
)
def test_a_range_beyond_the_end_is_416_with_the_size(published: Published, value: str) -> None:
    answer = published.server.client.get(published.url, headers={"Range": value})
    problem_of(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "value",
    [
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-2",
        "bytes=0-1,5-2",
        "bytes=--1",
        "bytes=1-2-3",
        "bytes=+1-2",
        "bytes=0x0-1",
        "bytes=1 - 2",
        "bytes=0-1;2-3",
        "bytes=\xb2-\xb3",
        "bytes 0-1",
        "items=0-1",
        "0-1",
        pytest.param(
            "bytes=" + ",".join(f"{start}-{start}" for start in range(0, 170, 10)), id="17 ranges"
        ),
        "bytes=0-999,0-0",
        "bytes=0-599,300-999",
        "bytes=0-,-1",
        pytest.param("bytes=" + ",".join(["0-99"] * 11), id="11 times the same"),
        pytest.param("bytes=" + "9" * 6000 + "x-", id="6000 digits and no range"),
    ],
)
def test_a_range_that_is_malformed_or_too_much_gets_the_whole_file(
    published: Published, value: str
) -> None:
    with Line(published.server) as line:
        line.ask(published.url, f"Range: {value}")
        answer = line.read_answer()
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-length"] == str(SIZE)
    assert "content-range" not in answer.headers


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("bytes=0-0,999-999", [(0, 0), (999, 999)]),
        ("bytes=0-9, 20-29 ,-5", [(0, 9), (20, 29), (995, 999)]),
        ("bytes=500-599,0-99", [(500, 599), (0, 99)]),
        ("bytes=0-9,5-14", [(0, 9), (5, 14)]),
        ("bytes=0-499,500-999", [(0, 499), (500, 999)]),
        ("bytes=0-1,5000-,4-5", [(0, 1), (4, 5)]),
        pytest.param(
            "bytes=" + ",".join(f"{start}-{start + 3}" for start in range(0, 160, 10)),
            [(start, start + 3) for start in range(0, 160, 10)],
            id="16 ranges",
        ),
    ],
)
def test_several_ranges_come_as_multipart_in_the_order_asked_for(
    published: Published, value: str, parts: list[tuple[int, int]]
) -> None:
    with Line(published.server) as line:
        line.ask(published.url, f"Range: {value}")
        line.ask(published.url)
        answer, following = line.read_answer(), line.read_answer()
    assert answer.status_code == 206
    assert answer.headers["etag"] == ETAG
    assert "content-range" not in answer.headers
    kind, _, boundary = answer.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    assert re.fullmatch(r"[0-9A-Za-z'()+_,./:=? -]{1,69}[0-9A-Za-z'()+_,./:=?-]", boundary)
    assert multipart(answer.content, boundary) == [
        (
            {
                "content-type": "application/json",
                "content-range": f"bytes {first}-{last}/{SIZE}",
            },
            CONTENT[first : last + 1],
        )
        for first, last in parts
    ]
    assert following.content == CONTENT  # Nothing was left over: the length was right.


def multipart(content: bytes, boundary: str) -> list[tuple[dict[str, str], bytes]]:
    """The parts of a multipart body, taken apart strictly (RFC 2046)."""
    delimiter = b"\r\n--" + boundary.encode()
    if not content.startswith(b"\r\n"):
        content = b"\r\n" + content
    preamble, *parts, end = content.split(delimiter)
    assert (preamble, end) in ((b"", b"--"), (b"", b"--\r\n"))
    found = []
    for part in parts:
        head, body = part.removeprefix(b"\r\n").split(b"\r\n\r\n", 1)
        pairs = [line.split(": ", 1) for line in head.decode().split("\r\n")]
        found.append(({name.lower(): value for name, value in pairs}, body))
    return found


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        (ETAG, 206),
        (OTHER, 200),
        (f"W/{ETAG}", 200),
        ("*", 200),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 200),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 200),
        ("", 200),
    ],
)
@pytest.mark.parametrize("value", ["bytes=0-1", "bytes=0-1,5-6"])
def test_if_range_sends_a_part_only_of_the_content_that_it_names(
    published: Published, condition: str, status: int, value: str
) -> None:
    with Line(published.server) as line:
        line.ask(published.url, f"Range: {value}", f"If-Range: {condition}")
        answer = line.read_answer()
    assert answer.status_code == status
    if status == 200:
        assert answer.content == CONTENT


def test_if_range_that_does_not_match_makes_no_416(published: Published) -> None:
    headers = {"Range": "bytes=5000-", "If-Range": OTHER}
    answer = published.server.client.get(published.url, headers=headers)
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_if_range_without_range_means_nothing(published: Published) -> None:
    answer = published.server.client.get(published.url, headers={"If-Range": OTHER})
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize("value", ["bytes=0-1", "bytes=0-1,5-6", "bytes=5000-"])
def test_head_ignores_range(published: Published, value: str) -> None:
    plain = published.server.client.head(published.url)
    answer = published.server.client.head(published.url, headers={"Range": value})
    assert answer.status_code == 200
    assert {**answer.headers, "date": ""} == {**plain.headers, "date": ""}


@pytest.mark.parametrize("source", ["copied", "in place"])
def test_a_file_of_zero_bytes_is_served(shared: Server, root: Path, source: str) -> None:
    key = key_of(new_slug())
    if source == "copied":
        answer = shared.register_copies(worker(key.slug), {key: b""})
    else:
        path = root / f"{key.slug}.json"
        path.touch()
        answer = shared.register(worker(key.slug), [in_place(key, path)])
    assert answer.json()["artifacts"][0]["size"] == 0
    whole = shared.fetch(key)
    assert (whole.status_code, whole.content) == (200, b"")
    assert whole.headers["content-length"] == "0"
    etag = whole.headers["etag"]
    assert etag == f'"{checksum(b"")}"'
    assert shared.fetch(key, if_none_match=etag).status_code == 304
    beyond = shared.fetch(key, range="bytes=0-")
    problem_of(beyond, 416, "range_not_satisfiable")
    assert beyond.headers["content-range"] == "bytes */0"
    # A suffix is satisfied by the whole, however short; no Content-Range can say "nothing".
    assert shared.fetch(key, range="bytes=-1").status_code == 200


# Types, methods, addresses


@pytest.mark.parametrize(
    ("filename", "media_type"),
    [
        ("config.json", "application/json"),
        ("CONFIG.JSON", "application/json"),
        ("merges.txt", "text/plain; charset=utf-8"),
        ("chat_template.jinja", "text/plain; charset=utf-8"),
        ("tokenizer.model", "application/octet-stream"),
        ("tokenizer", "application/octet-stream"),
        ("json", "application/octet-stream"),
        ("a.json.bin", "application/octet-stream"),
        ("page.html", "application/octet-stream"),
        ("image.svg", "application/octet-stream"),
        ("script.js", "application/octet-stream"),
    ],
)
def test_the_type_goes_by_the_extension_and_nothing_runs_in_a_browser(
    shared: Server, filename: str, media_type: str
) -> None:
    key = key_of(new_slug(), filename)
    shared.register_copies(worker(key.slug), {key: CONTENT})
    answer = shared.fetch(key)
    assert answer.headers["content-type"] == media_type
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("shape", ["url", "at_endpoint", "missing"])
def test_other_methods_are_refused_with_the_allowed_ones(
    published: Published, method: str, shape: str
) -> None:
    url = f"{published.url}.missing" if shape == "missing" else getattr(published, shape)
    answer = published.server.client.request(method, url, content=b"x" * 100_000)
    problem_of(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD"
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert published.server.client.get(published.url).content == CONTENT


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/registrations", {"POST"}),
        ("DELETE", "/v1/artifacts", {"GET", "HEAD"}),
        ("POST", "/v1/owners", {"GET", "HEAD"}),
        ("PUT", "/v1/owners/a/b/c/1/_base", {"GET", "HEAD", "DELETE"}),
        ("DELETE", f"/v1/blobs/{checksum(b'')}", {"PUT", "HEAD"}),
        ("GET", "/v1/artifacts/a/_base", {"DELETE"}),
        ("POST", "/live", {"GET", "HEAD"}),
    ],
)
def test_every_address_says_which_methods_it_takes(
    shared: Server, method: str, path: str, allowed: set[str]
) -> None:
    answer = shared.client.request(method, path)
    problem_of(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed


def test_both_url_shapes_serve_the_same(published: Published) -> None:
    short = published.server.client.get(published.url)
    long = published.server.client.get(published.at_endpoint)
    assert {**short.headers, "date": ""} == {**long.headers, "date": ""}
    assert short.content == long.content == CONTENT


def test_the_endpoint_shape_serves_only_what_an_owner_of_that_endpoint_holds(
    shared: Server,
) -> None:
    key = key_of(new_slug())
    prefill, decode = worker(key.slug, endpoint="prefill"), worker(key.slug, endpoint="decode")
    shared.register_copies(prefill, {key: CONTENT})
    shared.register_copies(decode, {key: CONTENT})

    def status(endpoint: str, component: str = "backend", namespace: str = key.slug) -> int:
        tail = f"{key.slug}/_base/{key.filename}"
        url = f"/v1/metadata/{namespace}/{component}/{endpoint}/{tail}"
        return shared.client.get(url).status_code

    assert [status("prefill"), status("decode"), status("generate")] == [200, 200, 404]
    assert status("prefill", component="frontend") == 404
    assert status("prefill", namespace="other") == 404
    shared.unregister(prefill)
    assert [status("prefill"), status("decode")] == [404, 200]
    assert shared.fetch(key).status_code == 200
    shared.unregister(decode)
    assert status("decode") == 404
    assert shared.fetch(key).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "a/_base",
        "a/_base/",
        "a/_base/b/",
        "a/_base/b/c",
        "a/b/c/d/_base",
        "a/b/c/d/_base/f/g",
        "/_base/f",
        "a//f",
        "//",
    ],
)
def test_an_address_that_can_be_no_key_is_not_registered(shared: Server, path: str) -> None:
    with Line(shared) as line:
        line.ask(f"/v1/metadata/{path}")
        problem_of(line.read_answer(), 404, "not_registered")


# Names


@pytest.mark.parametrize(
    "filename",
    [
        "a b.json",
        "100%.json",
        "%41.json",
        "q?a=b&c#d.json",
        "plus+minus.json",
        "semi;colon:at@.json",
        "quote\"'`<>.json",
        "größe.json",
        "配置.json",
        "😀.json",
        "e\u0301.json",
        "\u202edirection.json",
        pytest.param("配" * 85, id="85 characters of 3 bytes"),
        pytest.param("x" * 255, id="255 characters"),
        "...",
        ".hidden",
        "-",
        "~",
        " ",
    ],
    ids=ascii,
)
def test_any_name_works_when_it_is_percent_encoded(shared: Server, filename: str) -> None:
    key = key_of(new_slug(), filename)
    content = f"content of {filename!r}".encode()
    shared.upload(content)
    registered = shared.register(worker(key.slug), [copied(key, content)]).json()
    urls = [
        registered["artifacts"][0]["url"],
        f"/v1/metadata/{key.slug}/_base/" + "".join(f"%{byte:02x}" for byte in filename.encode()),
        f"/v1/metadata/{key.slug}/_base/" + "".join(f"%{byte:02X}" for byte in filename.encode()),
    ]
    for url in urls:
        with Line(shared) as line:
            line.ask(url)
            answer = line.read_answer()
        assert (answer.status_code, answer.content) == (200, content)


def test_names_that_look_alike_are_two(shared: Server) -> None:
    slug = new_slug()
    contents = {
        key_of(slug, "é.json"): b"composed",
        key_of(slug, "e\u0301.json"): b"two characters",
    }
    shared.register_copies(worker(slug), contents)
    for key, content in contents.items():
        url = f"/v1/metadata/{slug}/_base/{quote(key.filename)}"
        assert shared.client.get(url).content == content


def test_the_slug_and_suffix_may_be_percent_encoded_too(published: Published) -> None:
    slug = "".join(f"%{byte:02X}" for byte in published.key.slug.encode())
    answer = published.server.client.get(f"/v1/metadata/{slug}/%5Fbase/%63onfig.json")
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize(
    "segment",
    [
        "..%2Fconfig.json",
        "config.json%2F",
        "a%2fb",
        "a%5Cb",
        "config.json%00",
        "%00",
        "config.json%0A",
        "%0D%0AX: y".replace(" ", "%20"),
        "%1B[31m",
        "%7F",
        "%C2%85",
        "%FF",
        "%C0%AF",
        "%ED%A0%80",
        "%F8%88%80%80%80",
        "..",
        "%2e%2e",
        ".",
        "%2E",
        "%252e%252e",
        "%",
        "%z",
        pytest.param("x" * 256, id="256 bytes"),
        pytest.param("x" * 30_000, id="30,000 bytes"),
    ],
)
def test_a_segment_that_no_key_can_have_is_not_registered(
    published: Published, segment: str
) -> None:
    with Line(published.server) as line:
        line.ask(f"/v1/metadata/{published.key.slug}/_base/{segment}")
        line.ask(published.url)
        problem_of(line.read_answer(), 404, "not_registered")
        assert line.read_answer().content == CONTENT


def test_an_encoded_slash_never_makes_two_segments(published: Published) -> None:
    slug = published.key.slug
    for path in (f"{slug}%2F_base/config.json", f"{slug}/_base%2Fconfig.json"):
        with Line(published.server) as line:
            line.ask(f"/v1/metadata/{path}")
            problem_of(line.read_answer(), 404, "not_registered")


def test_the_absolute_form_of_a_target_is_understood(published: Published) -> None:
    with Line(published.server) as line:
        line.ask(published.server.url + published.url)
        assert line.read_answer().content == CONTENT


# Connections


def test_pipelined_requests_are_answered_in_order_on_one_connection(published: Published) -> None:
    def ask(line: Line) -> None:
        line.ask(published.url)
        line.ask(published.url, method="HEAD")
        line.ask(published.url, f"If-None-Match: {ETAG}")
        line.ask(published.url, "Range: bytes=0-9")
        line.ask("/v1/metadata/nobody/_base/config.json")
        line.ask(published.url, "Range: bytes=0-9,20-29")
        line.ask(published.url, "Range: bytes=5000-")
        line.ask("/live")
        line.ask(published.url, method="DELETE")
        line.ask(published.at_endpoint)

    expected = [200, 200, 304, 206, 404, 206, 416, 200, 405, 200]
    with Line(published.server) as line:
        for _ in range(5):
            ask(line)
        for _ in range(5):
            methods = ["GET", "HEAD", *["GET"] * 8]
            answers = [line.read_answer(method) for method in methods]
            assert [answer.status_code for answer in answers] == expected
            assert answers[0].content == answers[-1].content == CONTENT
            assert answers[3].content == CONTENT[:10]


def test_a_connection_is_kept_unless_the_client_closes_it(published: Published) -> None:
    with Line(published.server) as line:
        for _ in range(20):
            line.ask(published.url)
            assert line.read_answer().content == CONTENT
        line.ask(published.url, "Connection: close")
        answer = line.read_answer()
        assert (answer.content, answer.headers["connection"]) == (CONTENT, "close")
        assert line.read_rest() == b""


def test_a_client_of_http_1_0_gets_its_answer_and_the_end(published: Published) -> None:
    with Line(published.server) as line:
        line.send(f"GET {published.url} HTTP/1.0\r\n\r\n".encode())
        assert line.read_answer().content == CONTENT
        assert line.read_rest() == b""


def test_a_request_that_comes_byte_by_byte_is_understood(published: Published) -> None:
    with Line(published.server) as line:
        for byte in request(published.url):
            line.send(bytes([byte]))
        assert line.read_answer().content == CONTENT


# Request ids


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 200),
        ([f"If-None-Match: {ETAG}"], 304),
        ([f"If-Match: {OTHER}"], 412),
        (["Range: bytes=0-1"], 206),
        (["Range: bytes=5000-"], 416),
    ],
    ids=str,
)
def test_a_file_carries_no_request_id_and_an_error_in_its_place_does(
    published: Published, headers: list[str], status: int
) -> None:
    with Line(published.server) as line:
        line.ask(published.url, "X-Request-Id: mine", *headers)
        answer = line.read_answer()
    assert answer.status_code == status
    assert answer.headers.get("x-request-id") == (None if status < 400 else "mine")


OTHER_PATHS = [
    ("GET", "/live", 200),
    ("GET", "/health", 200),
    ("GET", "/v1/artifacts", 200),
    ("GET", "/v1/artifacts?limit=0", 422),
    ("GET", "/v1/artifacts/nobody/_base/f", 404),
    ("GET", "/v1/metadata/nobody/_base/f", 404),
    ("DELETE", "/v1/metadata/nobody/_base/f", 405),
    ("HEAD", f"/v1/blobs/{checksum(b'nothing like it')}", 404),
    ("DELETE", "/v1/owners/a/b/c/1/_base", 200),
    ("GET", "/nothing/here", 404),
    ("POST", "/live", 405),
    ("POST", "/v1/registrations", 415),
]


@pytest.mark.parametrize(("method", "path", "status"), OTHER_PATHS, ids=str)
@pytest.mark.parametrize(
    "given",
    [
        "abc-123",
        "!#$%&'*+-.^_`|~/:=?@[]{}()<>\"",
        pytest.param("x" * 128, id="128 characters"),
    ],
)
def test_a_request_id_is_echoed_everywhere_else(
    shared: Server, method: str, path: str, status: int, given: str
) -> None:
    answer = shared.client.request(method, path, headers={"X-Request-Id": given})
    assert answer.status_code == status
    assert answer.headers["x-request-id"] == given
    if status >= 400 and method != "HEAD":
        assert answer.json()["request_id"] == given


@pytest.mark.parametrize(
    "given",
    [
        "",
        " ",
        "two words",
        "tab\there",
        "gr\xf6\xdfe",
        pytest.param("x" * 129, id="129 characters"),
    ],
)
def test_a_malformed_request_id_is_replaced(shared: Server, given: str) -> None:
    found = set()
    with Line(shared) as line:
        for _ in range(3):
            line.ask("/nothing/here", f"X-Request-Id: {given}")
            answer = line.read_answer()
            problem = problem_of(answer, 404, "not_found")
            assert re.fullmatch("[0-9a-f]{16,}", answer.headers["x-request-id"])
            assert problem["request_id"] == answer.headers["x-request-id"]
            found.add(answer.headers["x-request-id"])
    assert len(found) == 3


def test_a_missing_request_id_is_made_up(shared: Server) -> None:
    found = {shared.client.get("/live").headers["x-request-id"] for _ in range(3)}
    assert len(found) == 3


def test_the_journal_has_the_request_id(shared: Server) -> None:
    key = key_of(new_slug())
    shared.upload(CONTENT)
    owner = worker(key.slug)
    shared.client.headers["x-request-id"] = f"id-of-{key.slug}"
    try:
        assert shared.register(owner, [copied(key, CONTENT)]).status_code == 200
        assert shared.unregister(owner).status_code == 200
    finally:
        del shared.client.headers["x-request-id"]
    events = journal(shared.place, namespace=key.slug)
    kinds = {"attached", "created", "registered", "released", "removed", "detached"}
    assert {event["kind"] for event in events} == kinds
    assert {event["request_id"] for event in events} == {f"id-of-{key.slug}"}
