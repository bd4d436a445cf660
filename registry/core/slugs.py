"""Model names made URL-safe, the way NVIDIA Dynamo does it."""

from __future__ import annotations

from registry.core.checks import check_slug, slug_text
from registry.core.text import shown
from registry.errors import Invalid


def slugify(name: str) -> str:
    """The slug of a model's name: `Org/Tiny.Lab-1B` -> `org_tiny_lab-1b`.

    Lowercase; every character outside `[a-z0-9_-]` becomes `_`; leading `_` are dropped. This is
    the rule of NVIDIA Dynamo 1.x, so that both name the same URL.

    Raises:
        Invalid: nothing that can stand in a URL is left, or more than 255 characters.
    """
    slug = slug_text(name)
    if not slug:
        raise Invalid(f"The name {shown(name)} has no letter or digit to make a slug from.")
    check_slug("slug", slug)
    return slug
