"""The OpenAPI 3.1 document: made of the route table and of the wire types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

from registry import __version__
from registry.errors import Busy, Forbidden, RegistryError, Unauthenticated
from registry.server.auth import role_needed
from registry.server.http import RETRY_AFTER_S, STATUS
from registry.server.openapi.spec import (
    HEADERS,
    PATH_PARAMETERS,
    Parameter,
    Problems,
    RequestSpec,
    ResponseSpec,
)
from registry.server.tokens import Role
from registry.wire.problems import Problem

TITLE = "metadata-registry"
INTRODUCTION = (
    "A durable registry of the metadata files that LLM serving workers share. Errors are problem "
    "details (RFC 9457) with a stable `code`. Times are RFC 3339 in UTC. Answers may gain fields."
)
TOKEN = "token"
PROBLEM_TYPE = "application/problem+json"
_REFERENCE = "#/components/schemas/{name}"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Security:
    """Which calls of a service ask for a token: none, changes, or reads as well."""

    tokens: bool = False
    reads_too: bool = False

    def asks(self, role: Role | None) -> bool:
        """Whether a call that needs a role needs a token here."""
        return self.tokens and role is not None and (self.reads_too or role is not Role.READ)


def document(calls: Sequence[RequestSpec], security: Security) -> Json:
    """The description of a service's calls."""
    paths: dict[str, Json] = {}
    schemas = _Schemas(calls)
    for call in calls:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call, security, schemas)
    components: Json = {"schemas": schemas.components}
    if security.tokens:
        components["securitySchemes"] = {TOKEN: {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": __version__, "description": INTRODUCTION},
        "tags": [{"name": group} for group in dict.fromkeys(call.group for call in calls)],
        "paths": paths,
        "components": components,
    }


def problems_of(call: RequestSpec, security: Security) -> Problems:
    """Every error that a call of this service may answer."""
    role = role_needed(call.method, call.path)
    # Web pages from elsewhere, and requests that were sent to another's name.
    access: Problems = (Unauthenticated, Forbidden) if security.asks(role) else (Forbidden,)
    return (*call.all_problems, *access)


class _Schemas:
    """The schemas of all types that the calls speak of, the structures among them by reference."""

    def __init__(self, calls: Sequence[RequestSpec]) -> None:
        self._types = list({id(each): each for each in _types_of(calls)}.values())
        schemas, self.components = msgspec.json.schema_components(
            self._types, ref_template=_REFERENCE
        )
        self._by_type = {
            id(each): schema for each, schema in zip(self._types, schemas, strict=True)
        }

    def of(self, kind: Any) -> Json:
        return dict(self._by_type[id(kind)])


def _types_of(calls: Iterable[RequestSpec]) -> Iterable[Any]:
    yield Problem
    yield from PATH_PARAMETERS.values()
    for call in calls:
        yield from (parameter.type for parameter in call.parameters)
        yield from (answer.body for answer in call.answers.values() if answer.body is not None)
        if call.sent is not None and call.sent.body is not None:
            yield call.sent.body


def _operation(call: RequestSpec, security: Security, schemas: _Schemas) -> Json:
    role = role_needed(call.method, call.path)
    found: Json = {
        "operationId": _operation_id(call),
        "summary": call.title,
        "tags": [call.group],
        "parameters": [
            *(_path_parameter(name, schemas) for name in call.names),
            *(_parameter(parameter, schemas) for parameter in call.parameters),
        ],
        "responses": _responses(call, security, schemas),
    }
    if call.says:
        found["description"] = call.says
    if call.sent is not None:
        found["requestBody"] = {
            "description": call.sent.says,
            "required": call.sent.required,
            "content": _bytes("application/octet-stream")
            if call.sent.body is None
            else {"application/json": {"schema": schemas.of(call.sent.body)}},
        }
    if security.asks(role):
        found["security"] = [{TOKEN: []}]
        found["description"] = f"{call.says} Needs a token with the role `{role}`.".strip()
    return found


def _operation_id(call: RequestSpec) -> str:
    """The handler's name; for what the router does not see, the method and what is in the path."""
    if call.handler is not None:
        return getattr(call.handler, "__name__", call.title)
    return f"{call.method.lower()}_file" + ("_of_endpoint" if "endpoint" in call.names else "")


def _path_parameter(name: str, schemas: _Schemas) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": schemas.of(PATH_PARAMETERS[name]),
    }


def _parameter(parameter: Parameter, schemas: _Schemas) -> Json:
    schema = schemas.of(parameter.type)
    if parameter.default is not None:
        schema["default"] = parameter.default
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": False,
        "description": parameter.says,
        "schema": schema,
    }


def _responses(call: RequestSpec, security: Security, schemas: _Schemas) -> Json:
    found = {str(status): _answer(call, each, schemas) for status, each in call.answers.items()}
    by_status: dict[int, list[type[RegistryError]]] = {}
    for problem in problems_of(call, security):
        by_status.setdefault(STATUS[problem], []).append(problem)
    for status, problems in by_status.items():
        refusal = _refusal(call, status, problems, schemas)
        if str(status) in found:
            refusal = _either(found[str(status)], refusal)
        found[str(status)] = refusal
    return dict(sorted(found.items()))


def _answer(call: RequestSpec, answer: ResponseSpec, schemas: _Schemas) -> Json:
    headers = _headers(answer.headers, with_id=call.answers_with_id)
    found: Json = {"description": answer.says, "headers": headers}
    content: Json = {}
    if answer.body is not None:
        content["application/json"] = {"schema": schemas.of(answer.body)}
    if call.method != "HEAD":
        content |= _bytes(*answer.media_types)
    if content:
        found["content"] = content
    return found


def _bytes(*media_types: str) -> Json:
    """Content that a schema says nothing about."""
    return {media_type: {} for media_type in media_types}


def _refusal(
    call: RequestSpec, status: int, problems: Sequence[type[RegistryError]], schemas: _Schemas
) -> Json:
    codes = sorted({problem.code for problem in problems})
    headers = []
    if all(issubclass(each, Busy) or each in RETRY_AFTER_S for each in problems):
        headers.append("Retry-After")
    if Unauthenticated in problems:
        headers.append("WWW-Authenticate")
    found: Json = {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(f'`{code}`' for code in codes)}.",
        "headers": _headers(headers),
    }
    if call.method != "HEAD":
        schema = schemas.of(Problem)
        schema["properties"] = {"status": {"const": status}, "code": {"enum": codes}}
        found["content"] = {PROBLEM_TYPE: {"schema": schema}}
    return found


def _either(answer: Json, refusal: Json) -> Json:
    """One status for an answer and for refusals."""
    headers = answer["headers"].keys() & refusal["headers"].keys()
    found: Json = {
        "description": f"{answer['description']} Or {refusal['description']}",
        "headers": {name: answer["headers"][name] for name in sorted(headers)},
    }
    content = answer.get("content", {}) | refusal.get("content", {})
    return found | ({"content": content} if content else {})


def _headers(names: Iterable[str], *, with_id: bool = True) -> Mapping[str, Json]:
    own = ("X-Request-Id",) if with_id else ()
    return {
        name: {"description": HEADERS[name], "required": True, "schema": {"type": "string"}}
        for name in (*own, *names)
    }
