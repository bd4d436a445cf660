"""The card of a model whose files are hashed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.client.attach import Manifest
from registry.client.endpoint import Endpoint
from registry.client.protocol import content_path
from registry.core.regular import read_regular
from registry.discovery.cards import Card, CardFile, LoraInfo, find_context_length, make_card

CONFIG_MAX_BYTES = 4 << 20


def card_of(
    manifest: Manifest,
    *,
    registry_url: str,
    name: str,
    lora: LoraInfo | None,
    fields: Mapping[str, Any] | None,
) -> Card:
    """The card that says where the registry at a URL serves the files of a manifest.

    Args:
        fields: replace fields of the card.

    Raises:
        Invalid: no card can be made of the files.
    """
    owner = manifest.owner
    endpoint = Endpoint(owner.namespace, owner.component, owner.endpoint)
    files = [
        CardFile(
            registry_url + content_path(manifest.served_key(each), endpoint),
            each.content.checksum,
            each.content.size,
        )
        for each in manifest.files
    ]
    paths = {each.file.filename: each.file.path for each in manifest.files}
    context_length = find_context_length(
        _find_json(paths.get("config.json")), _find_json(paths.get("tokenizer_config.json"))
    )
    return make_card(name, files, context_length=context_length, lora=lora, fields=fields)


def _find_json(path: Path | None) -> object:
    """What a JSON file holds, or None."""
    try:
        if path is None:
            return None
        content: object = json.loads(read_regular(path, CONFIG_MAX_BYTES, follow=True))
    except (OSError, ValueError, RecursionError):
        return None
    return content
