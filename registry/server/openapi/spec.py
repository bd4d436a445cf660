"""How a call is described beside its route. The OpenAPI document is made of nothing else."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from registry.errors import (
    Busy,
    HeadersTooLarge,
    Internal,
    Invalid,
    Malformed,
    NotFound,
    RegistryError,
    RequestTimeout,
    StorageUnavailable,
)
from registry.wire import types

Handler = Callable[[Request], Awaitable[Response]]
Problems = tuple[type[RegistryError], ...]

PATH_PARAMETERS: dict[str, Any] = {
    "namespace": types.Name,
    "component": types.Name,
    "endpoint": types.Name,
    "instance_id": types.InstanceId,
    "slug": types.Slug,
    "suffix": types.Suffix,
    "filename": types.Filename,
    "checksum": types.Checksum,
}
"""The parts of paths, which mean the same in every call."""

STORAGE: Problems = (Busy, StorageUnavailable)
"""What a call that uses the database may answer instead."""

EVERYWHERE: Problems = (Internal, Invalid, Busy, Malformed, RequestTimeout, HeadersTooLarge)
"""What any call may answer instead."""

HEADERS = {
    "X-Request-Id": "The caller's request id, or one that the service made up; the journal has it.",
    "ETag": "The checksum in quotes.",
    "Accept-Ranges": "`bytes`.",
    "Content-Range": "Which bytes these are, and of how many.",
    "Location": "Where to go on.",
    "Vary": "What the answer depends on.",
    "Retry-After": "Seconds to wait before the request is repeated.",
    "WWW-Authenticate": "`Bearer`, and whether a token was sent that is not known.",
    "Cache-Control": "How long the answer may be kept.",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or a header that a call takes. None has to be given."""

    name: str
    type: Any
    says: str
    default: int | str | None = None
    place: Literal["query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """What a call answers with one status: JSON of a type, bytes of media types, or no body."""

    says: str
    body: type[msgspec.Struct] | None = None
    media_types: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BodySpec:
    """The body that a call takes: JSON of a type, or bytes."""

    says: str
    body: type[msgspec.Struct] | None = None
    required: bool = True


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """A route with all that its callers have to know.

    `handler` is None for what is answered in front of the router. `problems` are the refusals of
    this call; those that every call may answer are added.
    """

    method: str
    path: str
    handler: Handler | None
    title: str
    group: str
    answers: Mapping[int, ResponseSpec]
    problems: Problems = ()
    says: str = ""
    parameters: tuple[Parameter, ...] = ()
    sent: BodySpec | None = None
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(re.findall(r"\{(\w+)\}", self.path))
        unknown = set(names) - PATH_PARAMETERS.keys()
        if unknown:
            raise ValueError(f"{self.path}: {', '.join(sorted(unknown))} is described nowhere")
        object.__setattr__(self, "names", names)

    @property
    def query(self) -> tuple[str, ...]:
        """The names of the query parameters that it takes."""
        return tuple(each.name for each in self.parameters if each.place == "query")

    @property
    def answers_with_id(self) -> bool:
        """Whether all its answers carry the request's id: those with a file do not."""
        return self.handler is not None

    @property
    def all_problems(self) -> Problems:
        """Every error that this call may answer, but for those of access."""
        elsewhere: Problems = (NotFound,) if self.names and self.handler else ()
        return tuple(dict.fromkeys((*self.problems, *elsewhere, *EVERYWHERE)))


def ok(
    says: str, body: type[msgspec.Struct] | None = None, *headers: str
) -> dict[int, ResponseSpec]:
    """The answers of a call that answers 200 and nothing else."""
    return {int(HTTPStatus.OK): ResponseSpec(says, body, headers=headers)}
