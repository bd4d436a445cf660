"""Where frontends learn which workers serve which models.

A worker publishes records, and frontends read them. A record is live until its publisher withdraws
it, or until it lapses because the publisher is gone: whoever publishes through a `Discovery` keeps
its records live by keeping it open. Records and their keys are those of NVIDIA Dynamo, so that its
frontends and workers can be at the other end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from registry.core.records import Owner
from registry.core.text import shown, shown_url
from registry.discovery.cards import Card
from registry.errors import Invalid, SettingsError

CONTENT_MAX_DEPTH = 64

_is_hex = re.compile(r"0|[1-9a-f][0-9a-f]{0,15}").fullmatch


class Kind(StrEnum):
    """What a record tells: that a model is served, or where an instance takes requests."""

    MODEL = "v1/mdc"
    INSTANCE = "v1/instances"


@dataclass(frozen=True, slots=True)
class RecordKey:
    """The name of a record: what it tells, and of whom. An instance has no LoRA."""

    kind: Kind
    owner: Owner

    def __str__(self) -> str:
        """`v1/mdc/namespace/component/endpoint/<instance id in hex>[/<LoRA slug>]`."""
        return f"{self.kind}/{self.name}"

    @property
    def name(self) -> str:
        """The key within its kind."""
        owner = self.owner
        names = [owner.namespace, owner.component, owner.endpoint, f"{owner.instance_id:x}"]
        return "/".join(names if owner.lora_slug is None else [*names, owner.lora_slug])

    @classmethod
    def parse(cls, kind: Kind, name: str) -> RecordKey:
        """The key whose `name` this is. Each key has one name: a number written otherwise is none.

        Raises:
            Invalid: it has not four or five parts, or a part is not well-formed.
        """
        parts = name.split("/")
        if len(parts) != 4 and (len(parts) != 5 or kind is Kind.INSTANCE):
            raise Invalid(f"{shown(name)} is not the name of a record.")
        if not _is_hex(parts[3]):
            raise Invalid(
                f"{shown(parts[3])} is not an instance id: lowercase hex without leading zeros."
            )
        return cls(kind, Owner(parts[0], parts[1], parts[2], int(parts[3], 16), *parts[4:]))


@dataclass(frozen=True, slots=True)
class Record:
    """A record: its key, and the JSON object that stands there."""

    key: RecordKey
    content: Mapping[str, Any]

    @property
    def card(self) -> Card:
        """The card of a model's record.

        Raises:
            Invalid: there is none.
        """
        card = self.content.get("card_json")
        if not isinstance(card, dict):
            raise Invalid(f"The record {self.key} has no model card.")
        return Card(card)


@dataclass(frozen=True, slots=True)
class Change:
    """A record that is live now, or with None, that is not live any more.

    `relisted`: nobody saw it happen. It was found when everything was listed again after a gap, so
    that many of them at once may say more about the store than about the records.
    """

    key: RecordKey
    record: Record | None
    relisted: bool = False


@dataclass(frozen=True, slots=True)
class RawChange:
    """As `Change`, of whatever stands under a name, byte for byte."""

    name: str
    content: bytes | None
    relisted: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """A watch has told of everything that a listing found: the first one, and each after a gap."""


class Discovery(Protocol):
    """A store of records.

    Every method raises DiscoveryUnavailable when the store cannot be used; what was asked may then
    have happened nevertheless. A store may be used by several threads.
    """

    def publish(self, record: Record) -> None:
        """Make a record live, in place of another under its key, and keep it so.

        It stays live until it is withdrawn; after `close`, or the death of this process, it lapses.
        """

    def withdraw(self, key: RecordKey) -> None:
        """Take a record away, whoever published it; fine if there is none.

        When this fails, what this store published stays live.
        """

    def find(self, key: RecordKey) -> Record | None:
        """The record that is live under a key, if there is one and it is well-formed."""

    def list(self, kind: Kind) -> list[Record]:
        """The live records of a kind, by name. What is not well-formed is left out."""

    def watch(self, kind: Kind) -> Iterator[Change | Listed]:
        """The live records of a kind, then `Listed`, then each change as it comes, until the store
        is closed.

        What changed during a gap comes with `relisted`, and `Listed` after it. A watch that raised
        is over. Whoever begins another takes for gone what it has not told of before its `Listed`.
        """

    def close(self) -> None:
        """Keep nothing live any more. Nothing is withdrawn."""


@runtime_checkable
class Scannable(Discovery, Protocol):
    """A store that can be looked at again and again by somebody who keeps little of what it has."""

    @property
    def liveness_s(self) -> float:
        """How long a record stays live, at most, when whoever published it is dead."""

    def scan(self, kind: Kind) -> Iterator[Record]:
        """As `list`, one record after the other: all of them at once may take much memory."""


@runtime_checkable
class Rewriting(Discovery, Protocol):
    """A store in which a record that somebody else keeps live can be changed."""

    def replace(self, old: Record, new: Record) -> bool:
        """Put `new` in the place of `old`, as live as that is: whoever published it keeps it live
        or lets it lapse. The store takes care that nothing lives longer than it would have.

        Returns:
            Whether it was done. It was not when `old` is gone, or something else stands there.

        Raises:
            Invalid: `new` has another key, or is larger than the store takes.
            DiscoveryUnavailable: the store cannot be used, or may not change this record. `new` may
                stand there nevertheless.
        """


@runtime_checkable
class RawStore(Discovery, Protocol):
    """A store of which everything below `v1/` can be copied, whatever it tells.

    A name is `v1/BUCKET/KEY`: `v1/mdc/namespace/component/endpoint/7`, `v1/event_sources/...`. All
    methods raise as those of `Discovery` do.
    """

    def list_raw(self) -> dict[str, bytes]:
        """What is live, in the order of the names. What cannot be a name is left out, and so is
        what is larger than a record may be."""

    def watch_raw(self) -> Iterator[RawChange | Listed]:
        """As `watch`, of everything."""

    def publish_raw(self, name: str, content: bytes) -> None:
        """Make something live, in place of another under its name, and keep it so as `publish`
        does.

        Raises:
            Invalid: that cannot be a name, or the content is larger than the store takes.
        """

    def withdraw_raw(self, name: str) -> None:
        """Take something away, whoever published it, as `withdraw` does.

        Raises:
            Invalid: that cannot be a name.
        """


def check_content(key: RecordKey, content: object) -> None:
    """Raise Invalid unless `content`, which others wrote, can be what stands under a key."""
    if not isinstance(content, dict):
        raise Invalid("it is not a JSON object")
    if _depth_exceeds(content, CONTENT_MAX_DEPTH):
        raise Invalid(f"it is nested more than {CONTENT_MAX_DEPTH} deep")
    owner = key.owner
    said = _endpoint_of(owner) | {"model_suffix": owner.lora_slug}
    for name, value in said.items():
        given = content.get(name)
        if given is not None and (type(given) is not type(value) or given != value):
            raise Invalid(f"its {name} is {shown(given)}, and its key says otherwise")


def _depth_exceeds(value: object, depth: int) -> bool:
    level: list[Any] = [value]
    while depth and level:
        inside = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for values in inside for each in values if isinstance(each, dict | list)]
        depth -= 1
    return bool(level)


def model_record(owner: Owner, card: Card) -> Record:
    """The record of a model, or of a LoRA, that an owner serves."""
    content: dict[str, Any] = {
        "type": "Model",
        **_endpoint_of(owner),
        "card_json": dict(card.content),
    }
    if owner.lora_slug is not None:
        content["model_suffix"] = owner.lora_slug
    return Record(RecordKey(Kind.MODEL, owner), content)


def instance_record(owner: Owner, address: str) -> Record:
    """The record of an instance that takes Dynamo's requests over TCP at `host:port`."""
    path = f"{owner.instance_id:x}/{owner.namespace}/{owner.component}/{owner.endpoint}"
    content = {
        "type": "Endpoint",
        **_endpoint_of(owner),
        "transport": {"tcp": f"{address}/{path}"},
        "request_plane_codec": "msgpack",
    }
    return Record(instance_key(owner), content)


def instance_key(owner: Owner) -> RecordKey:
    """The key of the instance that an owner belongs to."""
    base = Owner(owner.namespace, owner.component, owner.endpoint, owner.instance_id)
    return RecordKey(Kind.INSTANCE, base)


def _endpoint_of(owner: Owner) -> dict[str, Any]:
    return {
        "namespace": owner.namespace,
        "component": owner.component,
        "endpoint": owner.endpoint,
        "instance_id": owner.instance_id,
    }


def open_discovery(url: str) -> Discovery:
    """The store that a URL names: `file:/var/run/dynamo` is a directory in Dynamo's layout,
    `etcd://host:2379` an etcd as Dynamo uses it, `etcds://host:2379` one that takes TLS,
    `kubernetes:NAMESPACE` a namespace of a cluster. The last is only read; the others are
    `Rewriting` and `RawStore` as well.

    Raises:
        SettingsError: there is no such kind of store, or its settings cannot be used.
    """
    from registry.discovery.etcd.settings import is_etcd_url, read_settings

    if is_etcd_url(url):
        from registry.discovery.etcd import EtcdDiscovery

        return EtcdDiscovery(read_settings(url))
    if is_kubernetes_url(url):
        from registry.discovery.kubernetes import KubernetesDiscovery
        from registry.discovery.kubernetes.settings import read_settings as read_cluster

        return KubernetesDiscovery(read_cluster(url))
    from registry.discovery.file import FileDiscovery

    return FileDiscovery(_directory_of(url))


def is_kubernetes_url(url: str) -> bool:
    """Whether a URL names a namespace of a cluster."""
    return url.lower().startswith("kubernetes:")


def _directory_of(url: str) -> Path:
    try:
        parts = urlsplit(url)
        path = unquote(parts.path, errors="strict")
        # In a URL, a directory's own "?" and "#" are %3F and %23.
        is_all_used = not (parts.query or parts.fragment)
        is_here = parts.scheme == "file" and parts.netloc in ("", "localhost")
        if is_here and is_all_used and path and "\0" not in path:
            return Path(path)
    except ValueError:
        pass
    raise SettingsError(
        f"{shown(shown_url(url))} is not the URL of a discovery store; it must look like "
        "file:/DIRECTORY, etcd://HOST:2379, etcds://HOST:2379 or kubernetes:NAMESPACE."
    )
