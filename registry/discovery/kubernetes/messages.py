"""What an API server answers, as far as it is read here. Objects are understood one by one, so that
one that is not well-formed hides no other."""

from __future__ import annotations

import msgspec


class OwnerReference(msgspec.Struct, frozen=True):
    """Whose object it is."""

    kind: str = ""
    name: str = ""
    uid: str = ""


class ObjectMeta(msgspec.Struct, frozen=True, rename="camel"):
    """Which object it is."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""
    owner_references: list[OwnerReference] = []


class AnyObject(msgspec.Struct, frozen=True):
    """An object of which only the name is read."""

    metadata: ObjectMeta = ObjectMeta()


class ListMeta(msgspec.Struct, frozen=True):
    """Since when a listing is true, and where it goes on."""

    version: str = msgspec.field(name="resourceVersion", default="")
    go_on: str = msgspec.field(name="continue", default="")


class ObjectList(msgspec.Struct, frozen=True):
    """A page of a listing."""

    metadata: ListMeta = ListMeta()
    items: list[msgspec.Raw] = []


class ObjectEvent(msgspec.Struct, frozen=True):
    """A line of a watch: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR."""

    type: str = ""
    object: msgspec.Raw = msgspec.Raw(b"{}")


class ApiStatus(msgspec.Struct, frozen=True):
    """Why something was not done."""

    code: int = 0
    message: str = ""


class WorkerSpec(msgspec.Struct, frozen=True):
    """What a worker tells."""

    data: msgspec.Raw = msgspec.Raw(b"null")


class WorkerMetadata(msgspec.Struct, frozen=True):
    """A DynamoWorkerMetadata."""

    metadata: ObjectMeta
    spec: WorkerSpec = WorkerSpec()


class WorkerData(msgspec.Struct, frozen=True):
    """Records by their keys within their kinds."""

    endpoints: dict[str, msgspec.Raw] = {}
    model_cards: dict[str, msgspec.Raw] = {}


class EndpointConditions(msgspec.Struct, frozen=True):
    """Whether an endpoint takes requests."""

    ready: bool | None = None


class TargetRef(msgspec.Struct, frozen=True):
    """The pod behind an endpoint."""

    name: str = ""
    uid: str = ""


class SliceEndpoint(msgspec.Struct, frozen=True, rename="camel"):
    """An endpoint of a slice."""

    conditions: EndpointConditions | None = None
    target_ref: TargetRef | None = None


class EndpointSlice(msgspec.Struct, frozen=True):
    """Some of the endpoints of a service."""

    metadata: ObjectMeta
    endpoints: list[SliceEndpoint] | None = None
