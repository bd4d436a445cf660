"""`metadata-registry audit --discovery`: a comparison with discovery, and a second look."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from registry.cli.output import print_note
from registry.cli.text import counted

if TYPE_CHECKING:
    from registry.core.findings import DiscoveryReport
    from registry.core.public_urls import PublicUrls
    from registry.discovery import Discovery
    from registry.service.discovery_audit import Suspicions
    from registry.store.engine import Engine

DEFAULT_PUBLIC_URL = "http://127.0.0.1:8090"
"""Where `serve` listens unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class ComparisonOptions:
    """What is to be compared: a store, some namespaces of it or all, and findings of some classes
    or all. `public_urls` is empty where the registry itself is to say them."""

    discovery: str
    namespaces: frozenset[str]
    public_urls: tuple[str, ...]
    classes: frozenset[str]

    @classmethod
    def of(
        cls,
        discovery: str | None,
        namespaces: Sequence[str],
        public_urls: Sequence[str],
        classes: Collection[str],
    ) -> ComparisonOptions | None:
        """What the options say; None: nothing is to be compared.

        Raises:
            Usage: they contradict each other.
            Invalid: a namespace is none.
        """
        from registry.core.checks import check_name
        from registry.errors import Usage
        from registry.store.reads.audit import OF_DISCOVERY

        named = ", ".join(sorted(set(classes) & OF_DISCOVERY.keys()))
        if discovery is None:
            if named:
                raise Usage(f"{named} takes a comparison with discovery: say --discovery URL.")
            if namespaces or public_urls:
                raise Usage(
                    "--namespace and --public-url say what is compared with discovery: say "
                    "--discovery URL as well."
                )
            return None
        for namespace in namespaces:
            check_name("namespace", namespace)
        urls = public_urls or _given(os.environ.get("REGISTRY_PUBLIC_URLS", ""))
        return cls(discovery, frozenset(namespaces), tuple(urls), frozenset(classes))


def _given(text: str) -> list[str]:
    return [url for url in text.split(",") if url]


def compare_twice(database: Engine, wanted: ComparisonOptions) -> DiscoveryReport:
    """What does not fit, also when it is looked at again, after the time that discovery keeps the
    dead. Where everything fits, nothing is waited for.

    Raises:
        SettingsError: there is no such store.
        DiscoveryUnavailable: it cannot be read.
    """
    from registry.core.public_urls import PublicUrls
    from registry.discovery import open_discovery
    from registry.service.discovery_audit import Suspicions
    from registry.store.ops.settings_table import public_urls_in, read_variables

    with database.read() as conn:
        known = public_urls_in(read_variables(conn))
    public = PublicUrls(wanted.public_urls or known or (DEFAULT_PUBLIC_URL,))
    store = open_discovery(wanted.discovery)
    try:
        return _compare(database, store, public, wanted, Suspicions(wanted.classes))
    finally:
        store.close()


def _compare(
    database: Engine,
    store: Discovery,
    public: PublicUrls,
    wanted: ComparisonOptions,
    suspicions: Suspicions,
) -> DiscoveryReport:
    from registry.core.findings import DiscoveryReport
    from registry.service.advertised_cards import liveness_of, look_at_discovery
    from registry.service.discovery_audit import Looked, compare
    from registry.store.reads.advertised import FileKey, look_at_registry
    from registry.store.reads.audit import report_of

    keys: list[FileKey] = []
    liveness_s = liveness_of(store)
    while True:
        began_s = time.monotonic()
        with database.read() as conn:
            before = look_at_registry(conn, keys)
        discovery = look_at_discovery(store, public, wanted.namespaces)
        keys = discovery.keys
        with database.read() as conn:
            after = look_at_registry(conn, keys)
        suspects = compare(
            before, discovery, after, liveness_s=liveness_s, namespaces=wanted.namespaces
        )
        findings = suspicions.note(suspects, Looked(began_s, time.monotonic(), after.now))
        if suspicions.is_decided:
            listed, unreadable = len(discovery.listed), discovery.unreadable
            return DiscoveryReport(after.now, listed, unreadable, report_of(findings, None))
        print_note(
            f"{counted(suspicions.undecided, 'thing')} may not fit; looking again in "
            f"{ceil(suspicions.wait_s)} s."
        )
        time.sleep(suspicions.wait_s)
