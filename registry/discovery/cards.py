"""Model cards: what a frontend must know of a model, and where its files are.

The JSON is that of NVIDIA Dynamo 1.x. Files that its frontends need have places of their own in
it; all others are `extra_files`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from registry.core.checks import check_checksum, check_filename
from registry.core.slugs import slugify
from registry.core.text import shown
from registry.errors import Invalid

KV_CACHE_BLOCK_SIZE = 16
SIZE_MAX = 2**63 - 1
URL_MAX = 8192

_PLACES = {
    "config.json": ("model_info", "hf_config_json"),
    "tokenizer_config.json": ("prompt_formatter", "hf_tokenizer_config_json"),
    "generation_config.json": ("gen_config", "hf_generation_config_json"),
}
# Of these, the first that is there has the place.
_TOKENIZERS = {"tokenizer.json": "hf_tokenizer_json", "tiktoken.model": "tik_token_model"}
_TEMPLATES = {
    "chat_template.jinja": "hf_chat_template",
    "chat_template.json": "hf_chat_template_json",
}
_VOCABULARY = ".tiktoken"

TYPED_FILENAMES = (
    *("config.json", *_TOKENIZERS, "tokenizer_config.json", *_TEMPLATES),
    "generation_config.json",
)
"""The files with a place of their own in a card, besides a vocabulary `*.tiktoken`."""


def is_typed(filename: str) -> bool:
    """Whether a file can have a place of its own in a card: without it, a model is another one."""
    return filename in TYPED_FILENAMES or filename.endswith(_VOCABULARY)


@dataclass(frozen=True, slots=True)
class CardFile:
    """A file of a card: where it is, and what it is to be.

    `filename` is the last segment of the URL, which is what names the file.

    Raises:
        Invalid: a field is not well-formed, or the URL names no file.
    """

    url: str
    checksum: str
    size: int
    filename: str = field(init=False)

    def __post_init__(self) -> None:
        check_checksum(self.checksum)
        if type(self.size) is not int or not 0 <= self.size <= SIZE_MAX:
            raise Invalid(
                f"size of {shown(self.url)} is {shown(self.size)}; it must be a whole number from "
                f"0 to {SIZE_MAX}."
            )
        object.__setattr__(self, "filename", _filename_in(self.url))

    def to_json(self) -> dict[str, Any]:
        return {"path": self.url, "checksum": self.checksum, "size": self.size}


def _filename_in(url: str) -> str:
    if len(url) > URL_MAX or not url.isprintable():
        raise Invalid(
            f"{shown(url)} is no URL: it must be printable, of at most {URL_MAX} letters."
        )
    try:
        filename = unquote(urlsplit(url).path.rpartition("/")[2], errors="strict")
    except ValueError as error:
        raise Invalid(f"{shown(url)} is no URL: {error}.") from error
    check_filename(filename)
    return filename


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
        """The name that requests use, or "" if the card has none."""
        name = self.content.get("display_name")
        return name if isinstance(name, str) else ""

    @property
    def files(self) -> list[CardFile]:
        """Every file of the card, whatever its place.

        Raises:
            Invalid: one is not well-formed.
        """
        return [_file_of(found) for found in _files_in(dict(self.content))]

    @property
    def places(self) -> list[Mapping[str, Any]]:
        """Every object of the card that says where a file is, as it stands there."""
        return list(_files_in(dict(self.content)))

    def with_paths(self, path_of: Callable[[Mapping[str, Any]], object]) -> Card:
        """The same card with other paths in its `places`, and nothing else changed."""
        content = _copied(self.content)
        for place in _files_in(content):
            place["path"] = path_of(place)
        return Card(content)


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

    Raises:
        Invalid: there are several tokenizers, and nothing says which one is meant.
    """
    served_as = name if lora is None else lora.name
    content: dict[str, Any] = {
        "display_name": served_as,
        "slug": slugify(served_as),
        "source_path": name,
        # Dynamo leaves out what the model does not say.
        **({"architectural_max_context_length": context_length} if context_length else {}),
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
    given = {file.filename: file.to_json() for file in files}
    tokenizer = _find_tokenizer(given)
    template = next((name for name in _TEMPLATES if name in given), None)
    for name, file in list(given.items()):
        if name in _PLACES:
            place, kind = _PLACES[name]
        elif name == tokenizer:
            place, kind = "tokenizer", _TOKENIZERS.get(name, "tik_token_model")
        elif name == template:
            place, kind = "chat_template_file", _TEMPLATES[name]
            file = {"is_custom": False, "file": file}
        else:
            continue
        places[place] = {kind: file}
        del given[name]
    return places | {"extra_files": list(given.values())}


def _find_tokenizer(filenames: Iterable[str]) -> str | None:
    """The file that a frontend makes its tokenizer of.

    Raises:
        Invalid: there are several to choose from, and nothing says which one.
    """
    names = set(filenames)
    for name in _TOKENIZERS:
        if name in names:
            return name
    vocabularies = sorted(name for name in names if name.endswith(_VOCABULARY))
    if len(vocabularies) > 1:
        raise Invalid(
            f"The model has {', '.join(map(shown, vocabularies[:5]))} and no tokenizer.json or "
            "tiktoken.model, so that nothing says which one frontends are to use. Exclude all but "
            "one."
        )
    return vocabularies[0] if vocabularies else None


def _files_in(content: object) -> Iterator[dict[str, Any]]:
    """Every object that says where a file is, in the order of the card."""
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "path" in value and "checksum" in value:
                yield value
                continue
            value = list(value.values())
        if isinstance(value, list):
            pending += reversed(value)


def _copied(content: Any) -> Any:
    """JSON again, of which nothing is shared. How deep it is, was looked at when it was read."""
    if isinstance(content, Mapping):
        return {name: _copied(value) for name, value in content.items()}
    return [_copied(value) for value in content] if isinstance(content, list) else content


def _file_of(found: dict[str, Any]) -> CardFile:
    path, checksum, size = found["path"], found["checksum"], found.get("size")
    if not (isinstance(path, str) and isinstance(checksum, str) and isinstance(size, int)):
        where = shown(path) if isinstance(path, str) else "without a path"
        raise Invalid(f"The card has a file {where} whose checksum or size is not well-formed.")
    return CardFile(path, checksum, size)


def _member(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None
