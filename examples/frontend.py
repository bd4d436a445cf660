"""A frontend without a framework: follows discovery, fetches each model's files, tokenizes.

    python examples/frontend.py --discovery file:/tmp/discovery --to models

Every file is verified before a directory appears; a model's files are downloaded once, however many
workers serve it. Needs `pip install tokenizers` to tokenize. Stop it with Ctrl-C.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

from registry import RegistryError
from registry.client import Resolver
from registry.discovery import Kind, Listed, Record, open_discovery

TEXT = "Files are small, tokens are many."


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the models that workers publish.")
    parser.add_argument("--discovery", required=True, help="where workers publish")
    parser.add_argument("--url", action="append", default=[], help="a registry to ask first")
    parser.add_argument("--to", type=Path, default=Path("models"), help="where models go")
    arguments = parser.parse_args()

    resolver = Resolver(arguments.url)
    for change in open_discovery(arguments.discovery).watch(Kind.MODEL):
        if isinstance(change, Listed):
            continue
        if change.record is None:
            print(f"gone: {change.key.name}", flush=True)
            continue
        try:
            take(resolver, change.record, arguments.to)
        except RegistryError as error:
            print(f"cannot use {change.key.name}: {error}", flush=True)


def take(resolver: Resolver, record: Record, models: Path) -> None:
    """Fetch what a card names, and show that it can be used."""
    card = record.card
    directory = models / str(card.content["slug"])
    files = resolver.fetch_card(card, to=directory)
    downloaded = sum(file.downloaded for file in files)
    print(f"{card.name}: {len(files)} files, {downloaded} downloaded", flush=True)
    if (directory / "tokenizer.json").exists():
        print(f"{card.name}: {count_tokens(directory)} tokens in {TEXT!r}", flush=True)


def count_tokens(directory: Path) -> int:
    """How many tokens the model makes of a text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return len(tokenizer.encode(TEXT).ids)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
