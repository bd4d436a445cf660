"""Every page: where it is, and what it takes. The table of all calls has them too."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from registry.core.events import EventKind
from registry.errors import Invalid, UnknownOwner
from registry.server.openapi.spec import STORAGE, Parameter, RequestSpec, ResponseSpec
from registry.server.pages.choices import FORMATS, STATES
from registry.server.pages.handler import PageHandler
from registry.server.pages.urls import JOURNAL, OWNER, SQL, WORDS
from registry.store.reads.audit import CLASSES
from registry.wire import types
from registry.wire.reports import ServiceResponse

GROUP = "Pages"
HTML = ("text/html", "text/plain")
"""In plain text a page says what has to be installed for it."""

PAGE = {200: ResponseSpec("A page.", media_types=HTML)}
FOUND = {303: ResponseSpec("To the page of what was named whole.", headers=("Location",))}
GONE = {404: ResponseSpec("A page that says so, and what is left of it.", media_types=HTML)}

KIND = Annotated[str, Meta(extra_json_schema={"enum": ["", *EventKind]})]
CLASS = Annotated[str, Meta(extra_json_schema={"enum": ["", *CLASSES]})]
STATE = Annotated[str, Meta(extra_json_schema={"enum": list(STATES)})]
FORMAT = Annotated[str, Meta(extra_json_schema={"enum": list(FORMATS)})]
HOLDERS_AFTER = Parameter("holders_after", types.Cursor, "Begin the holders behind this one.")
AFTER = Parameter("after", types.Cursor, "Begin behind this id.")

PAGES: tuple[RequestSpec, ...] = (
    RequestSpec(
        "GET",
        "/",
        PageHandler("overview", "show_overview"),
        "See the whole at a glance",
        GROUP,
        {
            200: ResponseSpec(
                "A page for who asks for HTML; for programs, where to go on.",
                ServiceResponse,
                HTML,
                ("Vary",),
            )
        },
        STORAGE,
    ),
    RequestSpec(
        "GET",
        "/ui/models",
        PageHandler("models", "show_models"),
        "See the models",
        GROUP,
        PAGE | FOUND,
        (Invalid, *STORAGE),
        parameters=(
            Parameter("q", str, "The beginning of a slug, a model's name, or a whole key."),
            Parameter("after", types.ModelText, "Begin behind this model."),
        ),
    ),
    RequestSpec(
        "GET",
        "/ui/models/{slug}/{suffix}",
        PageHandler("models", "show_model"),
        "See a model, its files and its holders",
        GROUP,
        PAGE | GONE,
        (Invalid, *STORAGE),
        parameters=(Parameter("after", str, "Begin the files behind this one."), HOLDERS_AFTER),
    ),
    RequestSpec(
        "GET",
        "/ui/artifacts/{slug}/{suffix}/{filename}",
        PageHandler("models", "show_artifact"),
        "See a file, whose bytes it is served from, and its history",
        GROUP,
        PAGE | GONE,
        (Invalid, *STORAGE),
        parameters=(HOLDERS_AFTER,),
    ),
    RequestSpec(
        "GET",
        "/ui/owners",
        PageHandler("owners", "show_owners"),
        "See the owners",
        GROUP,
        PAGE | FOUND,
        (Invalid, *STORAGE),
        parameters=(
            Parameter("q", str, "The beginning of an owner, an instance, or a worker's name."),
            Parameter("state", STATE, "Only owners in this state; left out: who has not ended."),
            Parameter("after", types.OwnerText, "Begin behind this owner."),
        ),
    ),
    RequestSpec(
        "GET",
        OWNER,
        PageHandler("owners", "show_owner_page"),
        "See an owner, what it holds, and what would go dark without it",
        GROUP,
        PAGE,
        (Invalid, UnknownOwner, *STORAGE),
        parameters=(AFTER,),
    ),
    RequestSpec(
        "GET",
        JOURNAL,
        PageHandler("journal", "show_journal"),
        "See what happened",
        GROUP,
        PAGE,
        (Invalid, *STORAGE),
        parameters=(
            Parameter("owner", str, "Only events of this owner."),
            Parameter("slug", str, "Only events of this model."),
            Parameter("kind", KIND, "Only events of this kind."),
            Parameter("request_id", str, "Only what this request did."),
            Parameter("until", str, "Only events before this time in UTC."),
            AFTER,
        ),
    ),
    RequestSpec(
        "GET",
        "/ui/audit",
        PageHandler("findings", "show_findings"),
        "See what is wrong, and what to do",
        GROUP,
        PAGE,
        (Invalid, *STORAGE),
        parameters=(Parameter("class", CLASS, "Only this class of findings."),),
    ),
    RequestSpec(
        "GET",
        WORDS,
        PageHandler("words", "show_words"),
        "See what the words mean",
        GROUP,
        PAGE,
        STORAGE,
    ),
    RequestSpec(
        "GET",
        SQL,
        PageHandler("sql", "ask_in_sql"),
        "Ask in SQL",
        GROUP,
        {
            200: ResponseSpec(
                "A page, or what the statement answers.",
                media_types=(*HTML, "text/csv", "application/json"),
            )
        },
        (Invalid, *STORAGE),
        "One statement that reads, for 10 s and 16 MiB at most.",
        (
            Parameter("q", str, "The statement."),
            Parameter("format", FORMAT, "How it is answered.", "html"),
        ),
    ),
)
