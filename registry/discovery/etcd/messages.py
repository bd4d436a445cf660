"""What etcd's JSON gateway answers. Whole numbers come as text, bytes as base64, and what is zero,
false or empty is not there."""

from __future__ import annotations

from base64 import b64encode

import msgspec


class EtcdHeader(msgspec.Struct, frozen=True):
    """What an etcd says of itself with every answer: which one it is, and how far it has come."""

    cluster_id: int = 0
    revision: int = 0
    raft_term: int = 0

    def follows(self, earlier: EtcdHeader) -> bool:
        """Whether this can be the same etcd later. One that was restored from older data is not:
        what was seen in it before need not have happened any more."""
        if self.cluster_id and earlier.cluster_id and self.cluster_id != earlier.cluster_id:
            return False
        return self.revision >= earlier.revision and self.raft_term >= earlier.raft_term


class StoredValue(msgspec.Struct, frozen=True):
    """What stands under a key."""

    key: bytes = b""
    value: bytes = b""
    mod_revision: int = 0
    lease: int = 0


class RangeAnswer(msgspec.Struct, frozen=True):
    """Keys in their order. `count` is how many there are, `more` whether some were left off."""

    header: EtcdHeader = EtcdHeader()
    kvs: list[StoredValue] = []
    more: bool = False
    count: int = 0


class StepAnswer(msgspec.Struct, frozen=True):
    """What a step of a transaction is answered with, if it reads."""

    response_range: RangeAnswer = RangeAnswer()


class WrittenAnswer(msgspec.Struct, frozen=True):
    """What a put, a deletion or a transaction is answered with. Only the last may not succeed."""

    header: EtcdHeader = EtcdHeader()
    succeeded: bool = False
    responses: list[StepAnswer] = []


class LeaseAnswer(msgspec.Struct, frozen=True):
    """A lease. One that is over has no time left."""

    id: int = msgspec.field(name="ID", default=0)
    ttl_s: int = msgspec.field(name="TTL", default=0)
    keys: list[bytes] = []


class KeepAliveAnswer(msgspec.Struct, frozen=True):
    """A lease that was renewed, or is over."""

    result: LeaseAnswer = LeaseAnswer()


class TokenAnswer(msgspec.Struct, frozen=True):
    """What a user sends from now on."""

    token: str = ""


class GatewayError(msgspec.Struct, frozen=True):
    """Why something was not done. Within a stream the number has another name in older etcds."""

    code: int = 0
    grpc_code: int = 0
    message: str = ""


class WatchEvent(msgspec.Struct, frozen=True):
    """A key that was written or, with the type DELETE, went."""

    kv: StoredValue = StoredValue()
    type: str = "PUT"


class WatchResult(msgspec.Struct, frozen=True):
    """One message of a watch. With `fragment`, more of the same revision follows."""

    header: EtcdHeader = EtcdHeader()
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    fragment: bool = False
    events: list[WatchEvent] = []


class WatchLine(msgspec.Struct, frozen=True):
    """A line of a watch."""

    result: WatchResult | None = None
    error: GatewayError | None = None


def base64_of(content: bytes) -> str:
    """Bytes as the gateway takes them."""
    return b64encode(content).decode()


def end_of(prefix: bytes) -> bytes:
    """The first key behind all that begin with a prefix, which ends in a slash."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
