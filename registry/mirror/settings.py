"""What a mirror is told: which store, which registry, and how."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

from registry.client.transport import checked_url
from registry.core.checks import check_lease, check_name, milliseconds
from registry.core.hashing import checksum_of
from registry.core.records import Owner
from registry.core.regular import read_regular
from registry.core.text import shown
from registry.discovery import is_kubernetes_url
from registry.errors import Invalid, SettingsError
from registry.network.environment import is_loopback

MIRROR_PREFIX = "mirror-"
"""What the worker names of all owners begin with that a mirror registers."""

LINGER_MAX_S = 7 * 24 * 3600.0
FILE_MAX_BYTES = 64 << 20
"""What a registry takes unless it is told otherwise."""


class MirrorMode(StrEnum):
    """What becomes of the cards themselves."""

    COPY = "copy"
    """Nothing: the store is only read."""
    REWRITE = "rewrite"
    """They are made to name the registry, where they are, as long as their worker keeps them."""
    BRIDGE = "bridge"
    """They name the registry in a second store, into which everything else is copied as well."""


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """How a mirror works. Times in seconds.

    Args:
        discovery: the URL of the store that the fleet publishes in.
        url: the registry as the mirror reaches it, and `public_url` as frontends do.
        to: the URL of the second store, for `bridge` and only for it.
        namespaces: only cards of these are looked at; empty: all.
        lease_ttl_s: how long the registry keeps files when no mirror renews them.
        linger_s: how long files are kept when their card is gone.
        local_roots: directories of this host below which a card may name files by their path.
        name: what mirrors have in common that take on what each other registered; by default the
            store, and with a store of one host, the host.
        brake_share, brake_min, brake_max_s: when a listing shows more than this share of all
            owners gone, and at least so many, they are kept for so long.

    Raises:
        SettingsError: they contradict each other, or one is out of bounds.
    """

    discovery: str
    url: str
    public_url: str | None = None
    mode: MirrorMode = MirrorMode.COPY
    to: str | None = None
    namespaces: tuple[str, ...] = ()
    lease_ttl_s: float = 3600.0
    linger_s: float = 60.0
    local_roots: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    file_max_bytes: int = FILE_MAX_BYTES
    name: str | None = None
    brake_share: float = 0.3
    brake_min: int = 3
    brake_max_s: float = 900.0

    def __post_init__(self) -> None:
        checked_url(self.url)
        if self.public_url is not None:
            checked_url(self.public_url)
        if (self.mode is MirrorMode.BRIDGE) != (self.to is not None):
            raise SettingsError(
                "A bridge copies into a second store, and only a bridge does: give both, mode "
                "bridge and the URL of that store (--to), or neither."
            )
        if self.to is not None and _identity_of(self.to) == _identity_of(self.discovery):
            raise SettingsError("A bridge needs two stores; --to names the one it reads.")
        if not 0 <= self.linger_s <= LINGER_MAX_S:
            raise SettingsError(
                f"linger_s (--linger-s) is {self.linger_s!r}; it must be from 0 to "
                f"{LINGER_MAX_S:g} s."
            )
        with _named("lease_ttl_s (--lease-ttl-s)"):
            check_lease(milliseconds("the lease", self.lease_ttl_s))
        for namespace in self.namespaces:
            with _named("namespaces (--namespace)"):
                check_name("one", namespace)
        for root in self.local_roots:
            if not os.path.isabs(root):
                raise SettingsError(
                    f"The local root {shown(root)} (--local-root) must be an absolute path."
                )
            if not os.path.isdir(root):
                raise SettingsError(f"The local root {shown(root)} (--local-root) is no directory.")
        self._check_kinds()

    def _check_kinds(self) -> None:
        """Raise SettingsError if a store is one that is only read and is to be written."""
        if self.mode is MirrorMode.REWRITE and is_kubernetes_url(self.discovery):
            raise SettingsError(
                "The cards of Kubernetes cannot be changed where they are. Use mode copy."
            )
        stores = () if self.to is None else (self.discovery, self.to)
        if any(map(is_kubernetes_url, stores)):
            raise SettingsError(
                "A bridge goes from etcd or files to etcd or files, and not with Kubernetes."
            )

    @property
    def base_url(self) -> str:
        """What the URLs in cards begin with."""
        return checked_url(self.public_url or self.url)

    @property
    def worker_prefix(self) -> str:
        """What the worker names of all owners begin with that mirrors of this store register."""
        identity = _identity_of(self.discovery) if self.name is None else _digits(self.name)
        return f"{MIRROR_PREFIX}{identity}-"

    def worker_name(self, owner: Owner) -> str:
        """The worker name of an owner. It has the instance in it, so that no owner ever takes the
        place of another (S11)."""
        return f"{self.worker_prefix}{owner.instance_id:x}"

    def looks_at(self, owner: Owner) -> bool:
        """Whether the cards of an owner are this mirror's business."""
        return not self.namespaces or owner.namespace in self.namespaces


@contextmanager
def _named(setting: str) -> Iterator[None]:
    """What is said of a value names its setting."""
    try:
        yield
    except Invalid as error:
        raise SettingsError(f"{setting}: {error.detail}") from None


def _identity_of(url: str) -> str:
    """Eight digits that are the same for every mirror of a store, however it logs in there."""
    return _digits(_name_of(url))


def _digits(text: str) -> str:
    return checksum_of(text.encode()).removeprefix("blake3:")[:8]


def _name_of(url: str) -> str:
    """What tells a store from all others. Where a URL means another store on another host, the host
    belongs to it: nobody may take what another store's mirror registered for its own."""
    from registry.discovery.etcd.settings import is_etcd_url, read_settings

    if is_etcd_url(url):
        etcd = read_settings(url)
        name = "\n".join([*sorted(etcd.endpoints), etcd.prefix])
        if not any(is_loopback(urlsplit(each).hostname or "") for each in etcd.endpoints):
            return name
    elif url.startswith("file:"):
        name = "file:" + os.path.realpath(url.removeprefix("file:").removeprefix("//"))
    else:
        name = url
    return f"{name}\n{_host()}"


def _host() -> str:
    """What names this host, also after it was started again."""
    with suppress(OSError, ValueError):
        content = read_regular("/etc/machine-id", 1024).decode("ascii").strip()
        if content:
            return content
    return socket.gethostname()
