"""Register and upload."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from registry.server.auth import actor_of, grant_of
from registry.server.http import (
    answer,
    body_parts,
    read_json_body,
    registry_of,
    request_id_of,
)
from registry.wire.requests import decode_register
from registry.wire.responses import BlobResponse, RegisteredResponse


async def register(request: Request) -> Response:
    """`POST /v1/registrations`: a manifest for an owner."""
    registry = registry_of(request)
    body = await read_json_body(request, registry.settings.max_body_bytes)
    manifest = decode_register(body)
    owner, offers = manifest.owner.record(), [offer.record() for offer in manifest.artifacts]
    grant = grant_of(request)
    grant.check_namespace(owner.namespace)
    grant.check_slugs(offer.key.slug for offer in offers)
    registered = await registry.register(
        owner,
        offers,
        lease_ttl_ms=manifest.lease_ttl_ms,
        worker_name=manifest.worker_name,
        on_conflict=manifest.on_conflict,
        as_revision=manifest.as_revision,
        request_id=request_id_of(request),
        actor=actor_of(request),
    )
    return answer(RegisteredResponse.of(registered))


async def upload(request: Request) -> Response:
    """`PUT /v1/blobs/{checksum}`: content, checked."""
    registry = registry_of(request)
    checksum = request.path_params["checksum"]
    parts = body_parts(request, registry.settings.max_blob_bytes, "max_blob_bytes")
    size, is_new = await registry.upload(
        checksum, parts, request_id=request_id_of(request), actor=actor_of(request)
    )
    return answer(BlobResponse(checksum, size), 201 if is_new else 200)


async def has_blob(request: Request) -> Response:
    """`HEAD /v1/blobs/{checksum}`: is it here?"""
    size = await registry_of(request).has_blob(request.path_params["checksum"])
    if size is None:
        return Response(status_code=404)
    return Response(headers={"ETag": f'"{request.path_params["checksum"]}"'})
