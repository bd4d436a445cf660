"""Register and upload."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from registry.server.auth import actor_of
from registry.server.changes import ChangeRequest
from registry.server.http import answer, body_parts, registry_of, request_id_of
from registry.wire.requests import decode_register
from registry.wire.responses import BlobResponse, RegisteredResponse


async def register(asked: ChangeRequest) -> RegisteredResponse:
    """`POST /v1/registrations`: a manifest for an owner."""
    manifest = decode_register(asked.body)
    owner, offers = manifest.owner.record(), [offer.record() for offer in manifest.artifacts]
    asked.grant.check_namespace(owner.namespace)
    asked.grant.check_slugs(offer.key.slug for offer in offers)
    registered = await asked.registry.register(
        owner,
        offers,
        lease_ttl_ms=manifest.lease_ttl_ms,
        worker_name=manifest.worker_name,
        on_conflict=manifest.on_conflict,
        as_revision=manifest.as_revision,
        request_id=asked.request_id,
        actor=asked.actor,
    )
    return RegisteredResponse.of(registered)


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
