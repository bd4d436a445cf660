"""Model cards: what a frontend must know of a model, and where its files are.

The JSON is that of NVIDIA Dynamo 1.x. Files that its frontends need have places of their own in
it; all others are `extra_files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from registry.core.records import check_checksum, shown
from registry.core.slugs import slugify
from registry.errors import Invalid

KV_CACHE_BLOCK_SIZE = 16

_PLACES = {
    "config.json": ("model_info", "hf_config_json"),
    "tokenizer.json": ("tokenizer", "hf_tokenizer_json"),
    "tokenizer_config.json": ("prompt_formatter", "hf_tokenizer_config_json"),
    "generation_config.json": ("gen_config", "hf_generation_config_json"),
}
_TEMPLATES = {
    "chat_template.jinja": "hf_chat_template",
    "chat_template.json": "hf_chat_template_json",
}


@dataclass(frozen=True, slots=True)
class CardFile:
    """A file of a card: where it is, and what it is to be.

    Raises:
        Invalid: checksum or size is none.
    """

    url: str
    checksum: str
    size: int

    def __post_init__(self) -> None:
        check_checksum(self.checksum)
        if type(self.size) is not int or self.size < 0:
            raise Invalid(f"size of {shown(self.url)} is {self.size!r}; it must not be negative.")

    @property
    def filename(self) -> str:
        """The last segment of the URL, which is what names the file."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])

    def to_json(self) -> dict[str, Any]:
        return {"path": self.url, "checksum": self.checksum, "size": self.size}


@dataclass(frozen=True, slots=True)
class LoraInfo:
    """A LoRA: the name that requests use, and how many a GPU can hold at once, if that is known."""

    name: str
    max_gpu_lora_count: int | None = None

    @property
    def slug(self) -> str:
        """The LoRA's slug, which is the suffix of its entries.

        Raises:
            Invalid: nothing of the name can stand in a URL.
        """
        return slugify(self.name)

    def to_json(self) -> dict[str, Any]:
        if self.max_gpu_lora_count is None:
            return {"name": self.name}
        return {"name": self.name, "max_gpu_lora_count": self.max_gpu_lora_count}


@dataclass(frozen=True, slots=True)
class Card:
    """A model card as it was published."""

    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name that requests use."""
        return str(self.content.get("display_name", ""))

    @property
    def files(self) -> list[CardFile]:
        """Every file of the card, whatever its place.

        Raises:
            Invalid: one is not well-formed.
        """
        return [_file_of(found) for found in _files_in(dict(self.content))]


def make_card(
    name: str,
    files: Sequence[CardFile],
    *,
    context_length: int = 0,
    lora: LoraInfo | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Card:
    """The card of a model, or of a LoRA on it, that completes and chats over tokens.

    `fields` replace what stands here by default, such as `model_type` or `kv_cache_block_size`.
    """
    served_as = name if lora is None else lora.name
    content: dict[str, Any] = {
        "display_name": served_as,
        "slug": slugify(served_as),
        "source_path": name,
        "architectural_max_context_length": context_length,
        "context_length": context_length,
        "kv_cache_block_size": KV_CACHE_BLOCK_SIZE,
        "migration_limit": 0,
        "model_type": "Chat | Completions",
        "model_input": "Tokens",
        "worker_type": "aggregated",
        "needs": [],
        **_places_of(files),
    }
    if lora is not None:
        content["lora"] = lora.to_json()
    return Card(content | dict(fields or {}))


def find_context_length(config: object, tokenizer_config: object) -> int:
    """How many tokens a model takes, by its config.json or tokenizer_config.json; 0: not said."""
    for source, name in (
        (config, "max_position_embeddings"),
        (_member(config, "text_config"), "max_position_embeddings"),
        (tokenizer_config, "model_max_length"),
    ):
        found = _member(source, name)
        # A tokenizer without a limit writes a number far beyond every memory.
        if type(found) is int and 0 < found < 2**32:
            return found
    return 0


def _places_of(files: Sequence[CardFile]) -> dict[str, Any]:
    places: dict[str, Any] = {}
    extra: list[dict[str, Any]] = []
    for file in files:
        if file.filename in _PLACES:
            place, kind = _PLACES[file.filename]
            places[place] = {kind: file.to_json()}
        elif file.filename in _TEMPLATES and "chat_template_file" not in places:
            template = {"is_custom": False, "file": file.to_json()}
            places["chat_template_file"] = {_TEMPLATES[file.filename]: template}
        else:
            extra.append(file.to_json())
    return places | {"extra_files": extra}


def _files_in(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "path" in value and "checksum" in value:
            yield value
            return
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _files_in(each)


def _file_of(found: dict[str, Any]) -> CardFile:
    path, checksum, size = found["path"], found["checksum"], found.get("size")
    if not (isinstance(path, str) and isinstance(checksum, str) and isinstance(size, int)):
        raise Invalid(f"The card has a file that is not well-formed: {shown(found)}.")
    return CardFile(path, checksum, size)


def _member(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None
