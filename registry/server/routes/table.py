"""Every call of the service: where it is, what it does, what it takes and what it answers.

A route and its description are one entry here, so that neither can be without the other. What
/openapi.json and /docs say is made of this table.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from registry.core.events import EventKind, EventOrder
from registry.errors import (
    ChecksumMismatch,
    Conflict,
    ContentMissing,
    DiscoveryUnavailable,
    FileUnreadable,
    Invalid,
    LeaseGone,
    NotRegistered,
    PathNotAllowed,
    Superseded,
    TooLarge,
    UnknownOwner,
    UnsupportedMediaType,
    UploadsPending,
)
from registry.server.changes import Changing
from registry.server.http import PAGE_DEFAULT, check_query
from registry.server.openapi.spec import (
    STORAGE,
    BodySpec,
    Handler,
    Parameter,
    RequestSpec,
    ResponseSpec,
    ok,
)
from registry.server.pages.table import PAGES
from registry.server.routes import (
    administration,
    artifacts,
    files,
    models,
    operations,
    owners,
    registrations,
)
from registry.server.routes.description import Description
from registry.store.reads.audit import CLASSES
from registry.wire import types
from registry.wire.listings import (
    ArtifactsResponse,
    EventsResponse,
    ExplainResponse,
    ModelsResponse,
    OwnerResponse,
    OwnersResponse,
)
from registry.wire.reports import AuditResponse, HealthResponse, LiveResponse
from registry.wire.requests import DrainRequest, RegisterRequest, RenewalsRequest
from registry.wire.responses import (
    BlobResponse,
    DrainedResponse,
    ReceiptResponse,
    RegisteredResponse,
    RenewalsResponse,
    RenewedResponse,
)

DESCRIPTION = Description(lambda: CALLS)

READING, WRITING, LOOKING, RUNNING = "Reading", "Registering", "Looking", "Running"

CLASS = Annotated[str, Meta(extra_json_schema={"enum": list(CLASSES)})]

LIMIT = Parameter("limit", types.PageLimit, "At most so many.", PAGE_DEFAULT)
AFTER_ID = Parameter("after", types.Cursor, "Begin behind this id: `next` of the page before.")
AFTER_OWNER = Parameter(
    "after", types.OwnerText, "Begin behind this owner: `next` of the page before."
)
AFTER_MODEL = Parameter(
    "after", types.ModelText, "Begin behind this model: `next` of the page before."
)

CALLS: tuple[RequestSpec, ...] = (
    *files.calls(READING),
    RequestSpec(
        "POST",
        "/v1/registrations",
        Changing(registrations.register, has_body=True),
        "Register a manifest for an owner",
        WRITING,
        ok("All of it is registered.", RegisteredResponse),
        (
            Invalid,
            ChecksumMismatch,
            FileUnreadable,
            PathNotAllowed,
            TooLarge,
            UnsupportedMediaType,
            Conflict,
            ContentMissing,
            Superseded,
            *STORAGE,
        ),
        "All of it or nothing. Each artifact is a file that stays in place (`path`) or a copy that "
        "was uploaded before (`checksum`). Registering adds; what the manifest does not name stays "
        "as it is. Without artifacts it attaches the owner.",
        sent=BodySpec("The owner and what it holds.", RegisterRequest),
    ),
    RequestSpec(
        "PUT",
        "/v1/blobs/{checksum}",
        registrations.upload,
        "Upload content",
        WRITING,
        {
            200: ResponseSpec("It was here already; its upload grace begins anew.", BlobResponse),
            201: ResponseSpec("It is here now.", BlobResponse),
        },
        (Invalid, ChecksumMismatch, TooLarge, UploadsPending, *STORAGE),
        "Content that nobody registers is dropped when its grace period is over.",
        sent=BodySpec("The content, whose checksum is the one in the path."),
    ),
    RequestSpec(
        "HEAD",
        "/v1/blobs/{checksum}",
        registrations.has_blob,
        "Ask whether content is here",
        WRITING,
        {200: ResponseSpec("It is.", headers=("ETag",)), 404: ResponseSpec("It is not.")},
        (Invalid, *STORAGE),
    ),
    RequestSpec(
        "GET",
        "/v1/owners",
        owners.list_owners,
        "List the owners",
        LOOKING,
        ok("A page of owners, by identity.", OwnersResponse),
        (Invalid, *STORAGE),
        parameters=(AFTER_OWNER, LIMIT),
    ),
    RequestSpec(
        "GET",
        owners.PATH,
        owners.show_owner,
        "Show an owner and what it holds",
        LOOKING,
        ok("The owner. One that has ended holds nothing.", OwnerResponse),
        (Invalid, UnknownOwner, *STORAGE),
    ),
    RequestSpec(
        "DELETE",
        owners.PATH,
        Changing(owners.unregister_for_owner),
        "Release all that an owner holds and end it",
        WRITING,
        ok("What was released. An unknown owner releases nothing.", ReceiptResponse),
        (Invalid, *STORAGE),
    ),
    RequestSpec(
        "POST",
        f"{owners.PATH}/renew",
        Changing(owners.renew),
        "Renew an owner's lease",
        WRITING,
        ok("The renewed lease.", RenewedResponse),
        (Invalid, LeaseGone, Superseded, *STORAGE),
    ),
    RequestSpec(
        "POST",
        "/v1/renewals",
        Changing(owners.renew_many, has_body=True),
        "Renew the leases of many owners",
        WRITING,
        ok("For each owner its renewed lease, or why it has none.", RenewalsResponse),
        (Invalid, TooLarge, UnsupportedMediaType, *STORAGE),
        "In one write. An owner that was ended does not keep the others from being renewed.",
        sent=BodySpec("The owners, at most 1000.", RenewalsRequest),
    ),
    RequestSpec(
        "POST",
        f"{owners.PATH}/drain",
        owners.drain,
        "Announce that an owner will be detached",
        WRITING,
        ok("It drains, and is served until it is detached.", DrainedResponse),
        (Invalid, TooLarge, UnsupportedMediaType, LeaseGone, Superseded, *STORAGE),
        "Past the deadline the sweeper detaches it. Registering again cancels the drain.",
        sent=BodySpec("How long it may take; 5 minutes if left out.", DrainRequest, required=False),
    ),
    RequestSpec(
        "GET",
        "/v1/artifacts",
        artifacts.list_artifacts,
        "List the registered files",
        LOOKING,
        ok("A page of entries, by id.", ArtifactsResponse),
        (Invalid, *STORAGE),
        parameters=(
            Parameter("slug", str, "Only this model."),
            Parameter("suffix", str, "Only `_base`, or this LoRA's slug."),
            Parameter("filename", str, "Only files of this name."),
            Parameter("checksum", str, "Only this content."),
            AFTER_ID,
            LIMIT,
        ),
    ),
    RequestSpec(
        "DELETE",
        "/v1/artifacts/{slug}/{suffix}",
        artifacts.remove,
        "Drop a model's files, whoever holds them",
        WRITING,
        ok("What was dropped.", ReceiptResponse),
        (Invalid, *STORAGE),
    ),
    RequestSpec(
        "GET",
        "/v1/artifacts/{slug}/{suffix}/{filename}",
        artifacts.explain,
        "Explain a file: its content, its holders, its last events",
        LOOKING,
        ok("The entry, up to 1000 holders, the last 20 events.", ExplainResponse),
        (Invalid, NotRegistered, *STORAGE),
        "A 404 carries the last events of the key as well.",
    ),
    RequestSpec(
        "GET",
        "/v1/models",
        models.list_models,
        "List the models",
        LOOKING,
        ok("A page of models, by slug and suffix.", ModelsResponse),
        (Invalid, *STORAGE),
        parameters=(AFTER_MODEL, LIMIT),
    ),
    RequestSpec(
        "GET",
        "/v1/events",
        models.list_events,
        "Read the journal",
        LOOKING,
        ok("A page of events, by id.", EventsResponse),
        (Invalid, *STORAGE),
        "To follow the journal, ask again with `last` of the answer before as `after`.",
        (
            Parameter("owner", types.OwnerText, "Only events of this owner."),
            Parameter("slug", types.Slug, "Only events of this model."),
            Parameter("kind", EventKind, "Only events of this kind."),
            Parameter("request_id", types.RequestId, "Only what this request did."),
            Parameter("order", EventOrder, "Which come first.", EventOrder.OLDEST),
            AFTER_ID,
            LIMIT,
        ),
    ),
    RequestSpec(
        "GET",
        "/v1/audit",
        operations.show_audit,
        "Audit: what is wrong",
        LOOKING,
        ok("The findings, and a summary.", AuditResponse),
        (Invalid, DiscoveryUnavailable, *STORAGE),
        "With `discovery`, compared with the discovery store that the service was started with.",
        parameters=(
            Parameter("class", CLASS, "Only this class of findings."),
            Parameter("discovery", types.Flag, "Say how discovery compares as well.", "false"),
        ),
    ),
    *administration.calls(LOOKING),
    RequestSpec(
        "GET",
        "/live",
        operations.live,
        "Ask whether the process runs",
        RUNNING,
        ok("It does.", LiveResponse),
    ),
    RequestSpec(
        "GET",
        "/health",
        operations.health,
        "Ask whether the service can serve and write",
        RUNNING,
        {
            200: ResponseSpec("It can.", HealthResponse),
            503: ResponseSpec("It cannot; `checks` says why.", HealthResponse),
        },
    ),
    RequestSpec(
        "GET",
        "/metrics",
        operations.show_metrics,
        "Metrics for Prometheus",
        RUNNING,
        {
            200: ResponseSpec(
                "All metrics of all processes of the service.", media_types=("text/plain",)
            )
        },
    ),
    RequestSpec(
        "GET",
        "/openapi.json",
        DESCRIPTION.show_openapi,
        "This description, as OpenAPI 3.1",
        RUNNING,
        {200: ResponseSpec("The document.", media_types=("application/json",))},
    ),
    RequestSpec(
        "GET",
        "/docs",
        DESCRIPTION.show_docs,
        "This description, to be read",
        RUNNING,
        {200: ResponseSpec("A page, without script.", media_types=("text/html",))},
    ),
    *PAGES,
)


def _handling(call: RequestSpec, handler: Handler) -> Handler:
    """A call's handler, asked only for what the table says that the call takes."""

    async def handle(request: Request) -> Response:
        check_query(request, *call.query)
        return await handler(request)

    return handle


ROUTES = [
    Route(call.path, _handling(call, call.handler), methods=[call.method])
    for call in CALLS
    if call.handler is not None
]
