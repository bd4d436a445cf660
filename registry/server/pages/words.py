"""`/ui/words`: what the words on the pages mean."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from registry.server.pages import rendering, urls

WORDS: Mapping[str, str] = {
    "worker": "a process that serves models; it may have a name that outlives its restarts",
    "instance": "one run of a worker, with a number of its own",
    "owner": "who holds files: one endpoint of one instance, for its base model or for one LoRA, "
    "written namespace/component/endpoint/instance/suffix",
    "holder": "an owner, seen from a file that it holds",
    "entry": "a file that is registered, slug/suffix/filename, with its checksum and size; on the "
    "pages it is called a file as well",
    "slug, suffix": "the model's name made fit for an address; _base for the base model, or the "
    "name of a LoRA",
    "ref": "one owner holding one entry, and where that owner's bytes are",
    "in place, copy": "the bytes are a file on the disk of the registry; or they were uploaded",
    "blob": "one uploaded content, kept once under its checksum",
    "generation": "how often the only holder of a file has registered other content for it",
    "lease": "how long an owner is believed to live after it was last heard of. An owner without "
    "one is called immortal: it stays until somebody detaches it",
    "suspect": "an active owner whose lease has lapsed: still served, until the grace is over",
    "grace": "how long a lapsed owner is still served before it is ended; uploads have one too, in "
    "which they are to be registered",
    "detached, expired, superseded": "how an owner ended: it left, or its lease and the grace were "
    "over, or a newer instance of the same worker took its place",
    "released, removed": "an owner let go of a file; the last one did, and the file is gone",
    "tombstone": "an owner that has ended; it holds nothing, and is remembered for a while",
    "drifted": "a file in place has other bytes than were registered: it is not served from there",
    "dark, not serveable": "no holder of a file has its bytes, so its model cannot be served",
    "conflict": "an owner offers other bytes for a file that others hold, and is refused",
    "journal": "every change, shown under Events",
    "sweeper": "ends lapsed owners and deletes what nobody needs, again and again",
    "brake": "stops expiry where many owners lapse together: then it is most likely the network",
    "finding": "something that is wrong or worth knowing, as the audit sees it",
}
"""Each word that is used on a page and is not everyday English."""


async def show_words(request: Request) -> Response:
    """`GET /ui/words`: what the words mean."""
    return await rendering.page(request, "words.html", title="Words", here=urls.WORDS, words=WORDS)
