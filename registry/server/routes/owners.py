"""Owners: list, show, unregister."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from registry.core.checks import BASE_SUFFIX
from registry.core.identity import Identity
from registry.core.records import Owner
from registry.errors import RegistryError
from registry.server.auth import actor_of
from registry.server.changes import ChangeRequest
from registry.server.http import (
    answer,
    page_limit,
    read_optional_json_body,
    registry_of,
    request_id_of,
    while_there,
)
from registry.store.ops.leases import Renewal
from registry.store.owner_columns import lease_of
from registry.wire.listings import OwnersResponse, owner_response, owner_summary
from registry.wire.requests import decode_drain, decode_renewals, owner_named
from registry.wire.responses import (
    DrainedResponse,
    LeaseResponse,
    ReceiptResponse,
    RenewalResponse,
    RenewalsResponse,
    RenewedResponse,
)

PATH = "/v1/owners/{namespace}/{component}/{endpoint}/{instance_id}/{suffix}"


def _owner(parameters: Mapping[str, str]) -> Owner:
    names = ("namespace", "component", "endpoint", "instance_id", "suffix")
    return Owner.parse("/".join(parameters[name] for name in names))


async def list_owners(request: Request) -> Response:
    """`GET /v1/owners`: a page of owners in the order of their identity."""
    limit = page_limit(request)
    after = request.query_params.get("after")
    page = registry_of(request).lookups.owners(
        Owner.parse(after) if after is not None else None, limit
    )
    found = await while_there(request, page)
    following = str(found[-1].owner) if len(found) == limit else None
    return answer(OwnersResponse([owner_summary(each) for each in found], following))


async def show_owner(request: Request) -> Response:
    """`GET /v1/owners/{owner}`: an owner with what it holds."""
    found = registry_of(request).lookups.owner(_owner(request.path_params))
    record, entries = await while_there(request, found)
    return answer(owner_response(record, entries))


async def unregister_for_owner(asked: ChangeRequest) -> ReceiptResponse:
    """`DELETE /v1/owners/{owner}`: release all that it holds and end it."""
    receipt = await asked.registry.unregister_for_owner(
        _owner(asked.parameters), request_id=asked.request_id, actor=asked.actor
    )
    return ReceiptResponse.of(receipt)


async def renew(asked: ChangeRequest) -> RenewedResponse:
    """`POST /v1/owners/{owner}/renew`: renew its lease."""
    parts = asked.parameters
    lora_slug = None if parts["suffix"] == BASE_SUFFIX else parts["suffix"]
    who = Identity.checked(
        parts["namespace"], parts["component"], parts["endpoint"], parts["instance_id"], lora_slug
    )
    renewed = await asked.registry.renew(who)
    lease = LeaseResponse.of(lease_of(renewed.lease_ttl_ms, renewed.lease_expires_at))
    return RenewedResponse(owner_named(who), lease, renewed.refs, renewed.unserveable)


async def renew_many(asked: ChangeRequest) -> RenewalsResponse:
    """`POST /v1/renewals`: renew the leases of many owners in one write."""
    owners = decode_renewals(asked.body).identities()
    for namespace in {owner.namespace for owner in owners}:
        asked.grant.check_namespace(namespace)
    outcomes = await asked.registry.renew_many(owners) if owners else []
    return RenewalsResponse(_renewals(owners, outcomes))


def _renewals(
    owners: Sequence[Identity], outcomes: Sequence[Renewal | RegistryError]
) -> list[RenewalResponse]:
    """An answer for each owner. Most leases of a call are alike, and are spelled once."""
    leases: dict[tuple[int | None, int | None], LeaseResponse | None] = {}
    renewals = []
    for who, outcome in zip(owners, outcomes, strict=True):
        owner = owner_named(who)
        if isinstance(outcome, RegistryError):
            renewals.append(RenewalResponse.refused(owner, outcome))
            continue
        _, ttl_ms, expires_at, refs, unserveable = outcome
        terms = ttl_ms, expires_at
        if terms not in leases:
            leases[terms] = LeaseResponse.of(lease_of(ttl_ms, expires_at))
        renewals.append(RenewalResponse(owner, leases[terms], refs, unserveable))
    return renewals


async def drain(request: Request) -> Response:
    """`POST /v1/owners/{owner}/drain`: announce a detach."""
    registry = registry_of(request)
    owner = _owner(request.path_params)
    body = await read_optional_json_body(request, registry.settings.max_body_bytes)
    drained = await registry.drain(
        owner,
        decode_drain(body).deadline_ms,
        request_id=request_id_of(request),
        actor=actor_of(request),
    )
    return answer(DrainedResponse.of(drained))
