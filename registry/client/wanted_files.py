"""The files that are to be fetched, as a card or the list of a registry names them."""

from __future__ import annotations

from dataclasses import dataclass

from registry.client.async_client import AsyncRegistryClient
from registry.client.endpoint import Endpoint
from registry.client.protocol import content_path, find_content_path
from registry.core.checks import check_filename
from registry.core.text import shown
from registry.discovery.cards import Card
from registry.errors import Invalid, NotRegistered, ServiceUnreachable


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to fetch: its name, its content, and where it may be had.

    `path` is where registries serve it, `urls` are other places.
    """

    filename: str
    checksum: str
    size: int
    path: str | None
    urls: tuple[str, ...] = ()


def files_of(card: Card) -> list[Wanted]:
    """What a card names, and where it may be had.

    Raises:
        Invalid: a file is not well-formed, or two have the same name.
    """
    wanted: dict[str, Wanted] = {}
    for file in card.files:
        path = find_content_path(file.url)
        check_filename(file.filename)
        if file.filename in wanted:
            raise Invalid(f"The card of {shown(card.name)} has two files {shown(file.filename)}.")
        is_url = file.url.startswith(("http://", "https://"))
        wanted[file.filename] = Wanted(
            file.filename,
            file.checksum,
            file.size,
            path=path,
            urls=(file.url,) if is_url else (),
        )
    return list(wanted.values())


async def list_wanted(
    registry: AsyncRegistryClient,
    slug: str,
    suffix: str,
    endpoint: Endpoint | None,
    files_max: int,
) -> list[Wanted]:
    """What a registry lists of a model, one file too many at most.

    Raises:
        NotRegistered: there is nothing.
        ServiceUnreachable: it lists what was not asked for.
    """
    wanted: dict[str, Wanted] = {}
    async for entry in registry.artifacts(slug=slug, suffix=suffix):
        key = entry.key
        if (key.slug, key.suffix) != (slug, suffix) or key.filename in wanted:
            raise ServiceUnreachable(
                f"What answers at {registry.url} is no metadata registry: asked for the files of "
                f"{slug}/{suffix}, it lists {key}, or that twice."
            )
        if endpoint is None or await registry.is_held(key, endpoint):
            path = content_path(key, endpoint)
            wanted[key.filename] = Wanted(key.filename, entry.checksum, entry.size, path)
        if len(wanted) > files_max:
            break
    if not wanted:
        by_whom = f" by {endpoint}" if endpoint else ""
        raise NotRegistered(f"Nothing is registered{by_whom} under {slug}/{suffix}.")
    return list(wanted.values())
