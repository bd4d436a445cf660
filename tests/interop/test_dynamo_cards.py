"""A card of ours beside the card that the real NVIDIA Dynamo makes of the same directory."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.client import Worker
from registry.core.records import Owner
from registry.errors import RegistryError
from tests.models import make_model
from tests.support import MODEL, ROOT, Server

PYTHON = ROOT / "build/dynamo/bin/python"
NAME = "Org/Tiny.Lab-1B"
CONFIG = '{"model_type": "kimi_k2", "max_position_embeddings": 4096}'
VOCABULARY = "aGVsbG8= 0\n"

PLACES = ("model_info", "tokenizer", "prompt_formatter", "chat_template_file", "gen_config")
COMMON = (*PLACES, "display_name", "slug", "context_length", "architectural_max_context_length")

LOAD = """
import json, sys
from dynamo._core import ModelDeploymentCard as Card
for folder in sys.argv[2:]:
    try:
        print(Card.load(folder, sys.argv[1]).to_json_str())
    except Exception as error:
        print(json.dumps({"refused": str(error)}))
"""

PUBLISH = """
import asyncio, sys
from dynamo._core import DistributedRuntime, ModelInput, ModelType, WorkerType, register_model

async def main():
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp", event_plane="zmq")
    await register_model(
        ModelInput.Tokens, ModelType.Chat | ModelType.Completions,
        runtime.endpoint("dynamo.backend.generate"), sys.argv[2], sys.argv[1],
        self_host_metadata=True, ignore_weights=True, worker_type=WorkerType.Aggregated,
    )
    print("published", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


def files(*names: str, **contents: str) -> Callable[[Path], None]:
    """Writes config.json, some files by name, and others with a content of their own."""

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(CONFIG)
        for name in names:
            (folder / name).write_text(VOCABULARY if "tiktoken" in name else "{}")
        for name, content in contents.items():
            (folder / f"{name}.json").write_text(content)

    return write


def linked(folder: Path) -> None:
    """As a Hugging Face cache."""
    make_model(folder.with_name("blobs"))
    folder.mkdir()
    for path in folder.with_name("blobs").iterdir():
        (folder / path.name).symlink_to(path)


def half_downloaded(folder: Path) -> None:
    """A Hugging Face cache whose download was interrupted."""
    files()(folder)
    (folder / "x.tiktoken").symlink_to("nowhere")


KINDS: dict[str, Callable[[Path], object]] = {
    "a whole model": lambda folder: make_model(folder),
    "a snapshot of links": linked,
    "a config alone": files(),
    "tiktoken.model": files("tiktoken.model", "tokenizer_config.json"),
    "one vocabulary": files("qwen.tiktoken", "generation_config.json"),
    "a vocabulary and tiktoken.model": files("qwen.tiktoken", "tiktoken.model"),
    "a vocabulary and tokenizer.json": files("qwen.tiktoken", "tokenizer.json"),
    "vocabularies and tokenizer.json": files("a.tiktoken", "b.tiktoken", "tokenizer.json"),
    "vocabularies and tiktoken.model": files("a.tiktoken", "b.tiktoken", "tiktoken.model"),
    "all tokenizers": files("tiktoken.model", "tokenizer.json", "tokenizer.model", "x.tiktoken"),
    "names in capitals": files("Tiktoken.model", "X.TIKTOKEN", "Tokenizer.json"),
    "SentencePiece": files("tokenizer.model", "special_tokens_map.json"),
    "Mistral's own": files("tekken.json", "params.json"),
    "two templates": files("chat_template.jinja", "chat_template.json"),
    "a template as JSON": files(chat_template='{"chat_template": "x"}'),
    "templates of other names": files("template.jinja", "chat_template.txt", "other.jinja"),
    "a length of the text model": files(config='{"text_config": {"max_position_embeddings": 7}}'),
    "a length of the tokenizer": files(config="{}", tokenizer_config='{"model_max_length": 5}'),
    "no end": files(config="{}", tokenizer_config='{"model_max_length": 1e30}'),
    "two lengths": files(tokenizer_config='{"model_max_length": 5}'),
    "an enormous length": files(config='{"max_position_embeddings": 4294967295}'),
}
REFUSED: dict[str, Callable[[Path], object]] = {
    "several vocabularies": files("a.tiktoken", "b.tiktoken"),
    "a directory for a tokenizer": lambda folder: (folder / "tokenizer.json").mkdir(parents=True),
    "an empty config": files(config=""),
    "a vocabulary that is a link to nothing": half_downloaded,
}


def cards_of_dynamo(folders: list[Path]) -> list[dict[str, Any]]:
    command = [str(PYTHON), "-c", LOAD, NAME, *map(str, folders)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "DYN_LOG": "error"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def named(value: Any) -> Any:
    """What a card has in a place, with files by their name, whose paths differ."""
    if isinstance(value, dict):
        if "path" in value:
            return {**value, "path": value["path"].rpartition("/")[2]}
        return {name: named(each) for name, each in value.items()}
    return value


def test_every_place_of_a_card_has_what_dynamo_itself_puts_there(
    server: Server, tmp_path: Path
) -> None:
    folders = []
    for number, make in enumerate(KINDS.values()):
        folders.append(tmp_path / str(number) / "model")
        folders[-1].parent.mkdir()
        make(folders[-1])
    theirs = cards_of_dynamo(folders)
    ours = []
    for number, folder in enumerate(folders):
        with Worker(server.url, Owner("cards", "backend", "generate", number)) as worker:
            ours.append(worker.attach(folder, name=NAME).content)
    for kind, mine, other in zip(KINDS, ours, theirs, strict=True):
        found = {name: named(mine.get(name)) for name in COMMON}
        assert found == {name: named(other.get(name)) for name in COMMON}, kind


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_a_directory_of_which_dynamo_makes_no_card_is_refused(
    server: Server, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    folder = tmp_path / "model"
    make(folder)
    [theirs] = cards_of_dynamo([folder])
    assert list(theirs) == ["refused"]
    with (
        Worker(server.url, Owner("cards", "backend", "generate", 0)) as worker,
        pytest.raises(RegistryError),
    ):
        worker.attach(folder, name=NAME)
    assert server.client.get("/v1/artifacts").json()["artifacts"] == []


@pytest.mark.skipif(not MODEL.is_dir(), reason="`make test` installs the model")
def test_extra_files_are_those_of_dynamo_without_papers_images_and_weights(
    server: Server, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model")
    left_out = {
        *("LICENSE", "USE_POLICY.md", "logo.png", "x.ckpt", "x.distcp", "x.engine", "x.nemo"),
        *("x.npz", "x.ot", "x.pdparams", "x.safetensors.part1", "vocab.json.incomplete"),
    }
    for name in (*left_out, ".hidden", "x.bin", "x.gguf", "x.h5", "x.msgpack", "x.onnx", "x.pt"):
        (folder / name).write_text("x")
    for name in ("model.safetensors.index.json", "preprocessor_config.json", "modeling_tiny.py"):
        (folder / name).write_text("x")
    (folder / "x.tiktoken").write_text(VOCABULARY)
    theirs = published_by_dynamo(tmp_path, folder)
    with Worker(server.url, Owner("cards", "backend", "generate", 0)) as worker:
        ours = worker.attach(folder, name=NAME).content

    def extra(card: Any) -> dict[str, str]:
        return {named(each)["path"]: each["checksum"] for each in card["extra_files"]}

    assert extra(ours).items() <= extra(theirs).items()
    assert extra(theirs).keys() - extra(ours).keys() == left_out


def published_by_dynamo(tmp_path: Path, folder: Path) -> dict[str, Any]:
    """The card that a worker of Dynamo's publishes when it serves the files itself."""
    store = tmp_path / "kv"
    environment = os.environ | {
        "HOME": str(tmp_path),
        "DYN_FILE_KV": str(store),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_EVENT_PLANE_HOST": "127.0.0.1",
        "DYN_SYSTEM_HOST": "127.0.0.1",
        "DYN_SYSTEM_PORT": "0",
        "HF_HUB_OFFLINE": "1",
        "DYN_LOG": "error",
    }
    command = [str(PYTHON), "-c", PUBLISH, NAME, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        [path] = store.glob("v1/mdc/*") if said == "published\n" else [Path(os.devnull)]
        content = path.read_text()
        process.kill()
    record: dict[str, Any] = json.loads(content)["card_json"]
    return record
