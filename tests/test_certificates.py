"""The certificate of HTTPS: read again on SIGHUP, shown with its end, and warned of before that."""

from __future__ import annotations

import signal
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
import trustme

from registry.server.certificates import first_end
from tests.support import Server, wait_for
from tests.test_metrics import Scraped

DAY_S = 86_400


@dataclass(frozen=True)
class Issuer:
    """Puts certificates where a service finds them."""

    authority: trustme.CA
    chain: Path
    key: Path

    def issue(self, days: float = 100) -> bytes:
        """Put a new one in place; what connections are shown then."""
        ends = datetime.now(UTC) + timedelta(days=days)
        issued = self.authority.issue_cert(
            "127.0.0.1", not_before=ends - timedelta(days=400), not_after=ends
        )
        self.chain.write_bytes(issued.cert_chain_pems[0].bytes())
        self.key.write_bytes(issued.private_key_pem.bytes())
        return ssl.PEM_cert_to_DER_cert(self.chain.read_text())

    @property
    def flags(self) -> dict[str, object]:
        # What has ended is shown all the same, and only its bytes are compared.
        trust = ssl.create_default_context()
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        return {"tls_certificate": self.chain, "tls_key": self.key, "trust": trust}


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(trustme.CA(), tmp_path / "chain.pem", tmp_path / "key.pem")


def shown(server: Server, name: str | None = None) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(server.address, timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        found = secured.getpeercert(binary_form=True)
    assert found is not None
    return found


def warnings_of(server: Server) -> dict[str, str]:
    answer = httpx2.get(f"{server.url}/health", verify=False)
    found: dict[str, str] = answer.json()["warnings"]
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_takes_a_new_certificate_and_a_broken_one_changes_nothing(
    serve: Callable[..., Server], issuer: Issuer, workers: int
) -> None:
    first = issuer.issue()
    server = serve(workers=workers, **issuer.flags)

    def is_shown_by_all(certificate: bytes) -> bool:
        return all(shown(server) == certificate for _ in range(8 * workers))

    assert is_shown_by_all(first)
    assert shown(server, "some.name") == first
    second = issuer.issue()
    assert is_shown_by_all(first)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: is_shown_by_all(second))
    assert warnings_of(server) == {}

    fitting = issuer.key.read_bytes()
    for number, (file, content) in enumerate(
        [
            (issuer.chain, b"broken"),
            (issuer.key, trustme.CA().issue_cert("x").private_key_pem.bytes()),
        ],
        start=1,
    ):
        file.write_bytes(content)
        server.process.send_signal(signal.SIGHUP)
        wait_for(
            lambda number=number: (  # type: ignore[misc]
                server.log.count("the certificate stays the one before") == number * workers
            )
        )
        assert is_shown_by_all(second)
        assert str(issuer.chain) in warnings_of(server)["certificate"]
        issuer.chain.write_text(ssl.DER_cert_to_PEM_cert(second))
    issuer.key.write_bytes(fitting)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: warnings_of(server) == {} and is_shown_by_all(second))
    server.client.close()


def test_sighup_does_not_end_a_service_with_a_certificate(
    serve: Callable[..., Server], issuer: Issuer
) -> None:
    issuer.issue()
    server = serve(**issuer.flags)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "read the certificate" in server.log)
    assert server.process.poll() is None


@pytest.mark.parametrize(
    ("days", "warns"),
    [(100, None), (15, None), (13, "ends at"), (-1, "has ended at")],
)
def test_the_end_of_a_certificate_is_shown_and_warned_of_before_it(
    serve: Callable[..., Server], issuer: Issuer, days: int, warns: str | None
) -> None:
    issuer.issue(days)
    server = serve(**issuer.flags)
    text = httpx2.get(f"{server.url}/metrics", verify=False).text
    (line,) = [each for each in text.splitlines() if each.startswith(END)]
    assert abs(float(line.split()[1]) - time.time() - days * DAY_S) < 600
    found = warnings_of(server).get("certificate")
    assert (found is None) is (warns is None)
    if warns is not None and found is not None:
        assert warns in found
        assert str(issuer.chain) in found
        assert found in server.log


END = "metadata_registry_tls_certificate_end_timestamp_seconds"


def test_without_https_there_is_no_end_to_show(server: Server) -> None:
    assert END not in server.client.get("/metrics").text
    assert Scraped(server).get("entries") == 0


@pytest.mark.parametrize(
    "ends", [datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC), datetime(2061, 1, 1, tzinfo=UTC)]
)
def test_the_first_end_of_a_chain_is_the_one_that_counts(ends: datetime) -> None:
    """Before 2050 a time has a year of two digits."""
    authority = trustme.CA()
    later = authority.issue_cert("a.example", not_after=ends + timedelta(days=9))
    first = authority.issue_cert("b.example", not_after=ends)
    chain = later.cert_chain_pems[0].bytes() + first.cert_chain_pems[0].bytes()
    assert first_end(chain) == ends.timestamp()
    assert first_end(b"text before\n" + chain) == ends.timestamp()


@pytest.mark.parametrize("content", [b"", b"no certificate"])
def test_what_says_no_end_has_none(content: bytes) -> None:
    assert first_end(content) is None
    block = b"-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n"
    for inside in (b"AAAA", b"MAMC", b"not base64!", b"\xff"):
        assert first_end(block % inside) is None
