"""Discovery: records in NVIDIA Dynamo's own layout, live as long as their publisher is."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.core.hashing import checksum_of
from registry.core.records import Owner
from registry.discovery import (
    Change,
    Discovery,
    Kind,
    Listed,
    Record,
    RecordKey,
    instance_record,
    model_record,
    open_discovery,
)
from registry.discovery.cards import (
    Card,
    CardFile,
    LoraInfo,
    find_context_length,
    make_card,
)
from registry.discovery.file import FileDiscovery
from registry.errors import DiscoveryUnavailable, Invalid, SettingsError
from tests.support import wait_for

OWNER = Owner("dynamo", "backend", "generate", 0x6E652232AF6BF1C3)
LORA = Owner("dynamo", "backend", "generate", 0x6E652232AF6BF1C3, "my_adapter")
MODEL_FILE = "v1/mdc/dynamo%2Fbackend%2Fgenerate%2F6e652232af6bf1c3"
LORA_FILE = f"{MODEL_FILE}%2Fmy%5Fadapter"
INSTANCE_FILE = "v1/instances/dynamo%2Fbackend%2Fgenerate%2F6e652232af6bf1c3"


def file_of(name: str, content: bytes = b"{}") -> CardFile:
    url = f"http://127.0.0.1:8090/v1/metadata/dynamo/backend/generate/tiny/_base/{name}"
    return CardFile(url, checksum_of(content), len(content))


CARD = make_card("Org/Tiny", [file_of("config.json")])
Opener = Callable[[], FileDiscovery]


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    """Opens the same folder as often as wanted. Records live for a second."""
    opened: list[FileDiscovery] = []

    def open_one() -> FileDiscovery:
        opened.append(FileDiscovery(tmp_path / "kv", ttl_s=1.0))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def store(opener: Opener) -> FileDiscovery:
    return opener()


def files_in(folder: Path) -> dict[str, Any]:
    """Every file below a folder, parsed."""
    return {
        str(path.relative_to(folder)): json.loads(path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


# Records


def test_records_are_files_as_dynamo_writes_them(store: FileDiscovery, tmp_path: Path) -> None:
    lora_card = make_card("Org/Tiny", [], lora=LoraInfo("My.Adapter"))
    store.publish(instance_record(OWNER, "127.0.0.1:33031"))
    store.publish(model_record(OWNER, CARD))
    store.publish(model_record(LORA, lora_card))
    endpoint = {"namespace": "dynamo", "component": "backend", "endpoint": "generate"}
    identity = endpoint | {"instance_id": 7954801917906645443}
    assert files_in(tmp_path / "kv") == {
        MODEL_FILE: {"type": "Model", **identity, "card_json": CARD.content},
        LORA_FILE: {
            "type": "Model",
            **identity,
            "model_suffix": "my_adapter",
            "card_json": lora_card.content,
        },
        INSTANCE_FILE: {
            "type": "Endpoint",
            **identity,
            "transport": {"tcp": "127.0.0.1:33031/6e652232af6bf1c3/dynamo/backend/generate"},
            "request_plane_codec": "msgpack",
        },
    }


@pytest.mark.parametrize(
    "owner",
    [
        OWNER,
        LORA,
        Owner("a.b-c_D", "x", "y", 0),
        Owner("n", "c", "e", 2**64 - 1, "0-a"),
    ],
)
def test_a_record_is_found_under_the_key_that_it_was_published_under(
    store: FileDiscovery, owner: Owner
) -> None:
    record = model_record(owner, CARD)
    store.publish(record)
    assert store.list(Kind.MODEL) == [record]
    assert store.list(Kind.MODEL)[0].card == CARD
    assert store.list(Kind.INSTANCE) == []
    store.withdraw(record.key)
    assert store.list(Kind.MODEL) == []
    store.withdraw(record.key)


@pytest.mark.parametrize("name", ["", "a/b/c", "a/b/c/1/d/e", "a/b/c/xyz", "a/b/c/-1", "a//c/1"])
def test_what_is_no_name_of_a_record_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        RecordKey.parse(Kind.MODEL, name)


def test_what_is_not_well_formed_is_left_out(store: FileDiscovery, tmp_path: Path) -> None:
    store.publish(model_record(OWNER, CARD))
    folder = tmp_path / "kv/v1/mdc"
    for name, content in {
        "not-a-key": "{}",
        "n%2Fc%2Fe%2F1": "{",
        "n%2Fc%2Fe%2F2": "[]",
        "n%2Fc%2Fe%2F3": "[" * 100_000,
        ".tmp_0123": "{}",
    }.items():
        (folder / name).write_text(content)
    (folder / "n%2Fc%2Fe%2F4").mkdir()
    assert [record.key.owner for record in store.list(Kind.MODEL)] == [OWNER]
    with pytest.raises(Invalid, match="has no model card"):
        _ = instance_record(OWNER, "h:1").card


# Life


def test_a_record_stays_live_while_its_publisher_is_open_and_lapses_when_it_is_not(
    opener: Opener, tmp_path: Path
) -> None:
    publisher, reader = opener(), opener()
    publisher.publish(model_record(OWNER, CARD))
    file = tmp_path / "kv" / MODEL_FILE
    first = file.stat().st_mtime
    wait_for(lambda: len(reader.list(Kind.MODEL)) == 1 and file.stat().st_mtime > first + 1)
    publisher.close()
    wait_for(lambda: reader.list(Kind.MODEL) == [])
    with pytest.raises(DiscoveryUnavailable, match="was closed"):
        publisher.publish(model_record(OWNER, CARD))


def test_a_record_of_a_killed_publisher_lapses(opener: Opener, tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from registry.discovery import *\nfrom registry.discovery.file import *\n"
        "from registry.discovery.cards import make_card\nfrom registry.core.records import Owner\n"
        "store = FileDiscovery(Path(sys.argv[1]), ttl_s=1.0)\n"
        "store.publish(model_record(Owner('n', 'c', 'e', 1), make_card('Org/Tiny', [])))\n"
        "time.sleep(60)"
    )
    reader = opener()
    command = [sys.executable, "-c", program, str(tmp_path / "kv")]
    with subprocess.Popen(command) as process:
        wait_for(lambda: len(reader.list(Kind.MODEL)) == 1)
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: reader.list(Kind.MODEL) == [])


def test_a_record_that_others_removed_as_lapsed_is_written_again(
    store: FileDiscovery, tmp_path: Path
) -> None:
    record = model_record(OWNER, CARD)
    store.publish(record)
    (tmp_path / "kv" / MODEL_FILE).unlink()
    wait_for(lambda: store.list(Kind.MODEL) == [record])


def test_what_was_withdrawn_is_never_written_again(store: FileDiscovery, tmp_path: Path) -> None:
    stays = model_record(LORA, CARD)
    store.publish(stays)
    for _ in range(20):
        store.publish(model_record(OWNER, CARD))
        store.withdraw(RecordKey(Kind.MODEL, OWNER))
    # By the time that one that was removed is back, the other would be as well.
    (tmp_path / "kv" / LORA_FILE).unlink()
    wait_for(lambda: store.list(Kind.MODEL) == [stays])


def test_a_record_is_replaced_whole(opener: Opener) -> None:
    writer, reader = opener(), opener()
    cards = [make_card(f"Org/Tiny-{number}", [file_of("f" * number)]) for number in (1, 200)]
    writer.publish(model_record(OWNER, cards[0]))
    done = threading.Event()

    def write() -> None:
        for card in itertools.islice(itertools.cycle(cards), 100):
            writer.publish(model_record(OWNER, card))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        [record] = reader.list(Kind.MODEL)
        assert record.card in cards
    thread.join()


def test_trouble_with_the_folder_is_an_error_and_what_was_published_stays(
    store: FileDiscovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = model_record(OWNER, CARD)
    store.publish(record)

    def fail(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(DiscoveryUnavailable, match="cannot be withdrawn: Permission denied"):
            store.withdraw(record.key)
    (tmp_path / "kv" / MODEL_FILE).unlink()
    wait_for(lambda: store.list(Kind.MODEL) == [record])
    (tmp_path / "kv/v1/instances").write_text("not a folder")
    with pytest.raises(DiscoveryUnavailable, match="cannot be published"):
        store.publish(instance_record(OWNER, "h:1"))
    with pytest.raises(DiscoveryUnavailable, match="cannot be listed"):
        store.list(Kind.INSTANCE)


def test_trouble_with_touching_is_logged_once_and_tried_on(
    store: FileDiscovery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries: list[object] = []

    def fail(*args: object, **kwargs: object) -> None:
        tries.append(args)
        raise OSError(28, "No space left on device")

    touch = os.utime
    monkeypatch.setattr(os, "utime", fail)
    record = model_record(OWNER, CARD)
    store.publish(record)
    wait_for(lambda: len(tries) > 3)
    assert caplog.text.count("may lapse") == 1
    monkeypatch.setattr(os, "utime", touch)
    (tmp_path / "kv" / MODEL_FILE).unlink()
    wait_for(lambda: store.list(Kind.MODEL) == [record])


# Watching


def test_a_watch_tells_what_is_live_and_then_every_change(opener: Opener) -> None:
    publisher, reader = opener(), opener()
    first, lora = model_record(OWNER, CARD), model_record(LORA, CARD)
    changed = model_record(OWNER, make_card("Org/Tiny", [], fields={"context_length": 7}))
    publisher.publish(first)
    changes = reader.watch(Kind.MODEL)
    assert [next(changes), next(changes)] == [Change(first.key, first), Listed()]
    publisher.publish(lora)
    publisher.publish(instance_record(OWNER, "h:1"))
    assert next(changes) == Change(lora.key, lora)
    publisher.publish(changed)
    assert next(changes) == Change(changed.key, changed)
    publisher.withdraw(first.key)
    assert next(changes) == Change(first.key, None)
    publisher.close()
    assert next(changes) == Change(lora.key, None)
    reader.close()
    assert list(changes) == []


def test_a_watch_of_a_folder_that_is_not_there_yet_sees_what_comes(opener: Opener) -> None:
    changes = opener().watch(Kind.MODEL)
    assert next(changes) == Listed()
    record = model_record(OWNER, CARD)
    timer = threading.Timer(0, lambda: opener().publish(record))
    timer.start()
    assert next(changes) == Change(record.key, record)
    timer.join()


# URLs


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:/run/kv", "/run/kv"),
        ("file:///run/my%20kv", "/run/my kv"),
        ("file://localhost/run/kv", "/run/kv"),
        ("file:kv", "kv"),
    ],
)
def test_a_file_url_names_a_folder(url: str, folder: str) -> None:
    store: Discovery = open_discovery(url)
    assert isinstance(store, FileDiscovery)
    assert store._root == Path(folder)


@pytest.mark.parametrize("url", ["", "/run/kv", "file:", "file://host/kv", "redis://h/", "kv"])
def test_what_is_no_url_of_a_store_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="file:/DIRECTORY"):
        open_discovery(url)


# Cards


def test_every_file_of_a_card_has_its_place() -> None:
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    names += ["chat_template.json", "vocab.json", "a b.txt"]
    files = [file_of(name) for name in names]
    card = make_card("Org/Tiny", files, context_length=9)
    content = {name: each.to_json() for name, each in zip(names, files, strict=True)}
    assert card.content == {
        "display_name": "Org/Tiny",
        "slug": "org_tiny",
        "source_path": "Org/Tiny",
        "model_info": {"hf_config_json": content["config.json"]},
        "tokenizer": {"hf_tokenizer_json": content["tokenizer.json"]},
        "prompt_formatter": {"hf_tokenizer_config_json": content["tokenizer_config.json"]},
        "gen_config": {"hf_generation_config_json": content["generation_config.json"]},
        "chat_template_file": {
            "hf_chat_template_json": {"is_custom": False, "file": content["chat_template.json"]}
        },
        "extra_files": [content["vocab.json"], content["a b.txt"]],
        "architectural_max_context_length": 9,
        "context_length": 9,
        "kv_cache_block_size": 16,
        "migration_limit": 0,
        "model_type": "Chat | Completions",
        "model_input": "Tokens",
        "worker_type": "aggregated",
        "needs": [],
    }
    assert sorted(file.filename for file in card.files) == sorted(names)


def test_of_two_chat_templates_one_has_the_place_and_both_are_there() -> None:
    files = [file_of("chat_template.json"), file_of("chat_template.jinja")]
    card = make_card("Org/Tiny", files)
    assert list(card.content["chat_template_file"]) == ["hf_chat_template"]
    assert len(card.files) == 2


@pytest.mark.parametrize(
    ("names", "tokenizer"),
    [
        (["tokenizer.json"], {"hf_tokenizer_json": "tokenizer.json"}),
        (["tiktoken.model"], {"tik_token_model": "tiktoken.model"}),
        (["qwen.tiktoken"], {"tik_token_model": "qwen.tiktoken"}),
        (["a.tiktoken", "tiktoken.model", "b.tiktoken"], {"tik_token_model": "tiktoken.model"}),
        (
            ["a.tiktoken", "tiktoken.model", "tokenizer.json"],
            {"hf_tokenizer_json": "tokenizer.json"},
        ),
        (["Tiktoken.model", "x.TIKTOKEN", "tokenizer.model", "tekken.json"], {}),
    ],
)
def test_a_card_has_the_tokenizer_that_dynamo_would_choose(
    names: list[str], tokenizer: dict[str, str]
) -> None:
    card = make_card("Org/Tiny", [file_of(name) for name in names])
    found = card.content.get("tokenizer", {})
    assert found == {kind: file_of(name).to_json() for kind, name in tokenizer.items()}
    assert [file["path"].rpartition("/")[2] for file in card.content["extra_files"]] == [
        name for name in names if name not in tokenizer.values()
    ]


def test_of_several_vocabularies_none_is_taken_at_random() -> None:
    files = [file_of("a.tiktoken"), file_of("b.tiktoken")]
    with pytest.raises(Invalid, match=r"'a.tiktoken', 'b.tiktoken' .* Exclude all but one"):
        make_card("Org/Tiny", files)


def test_a_lora_s_card_is_named_after_it() -> None:
    card = make_card("Org/Tiny", [], lora=LoraInfo("My.Adapter", 4))
    assert (card.name, card.content["slug"]) == ("My.Adapter", "my_adapter")
    assert card.content["lora"] == {"name": "My.Adapter", "max_gpu_lora_count": 4}
    with pytest.raises(Invalid):
        _ = LoraInfo("___").slug


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "length"),
    [
        ({"max_position_embeddings": 4096}, {"model_max_length": 10}, 4096),
        ({"text_config": {"max_position_embeddings": 512}}, None, 512),
        ({}, {"model_max_length": 10}, 10),
        ({}, {"model_max_length": 10**30}, 0),
        ({"max_position_embeddings": "4096"}, {"model_max_length": True}, 0),
        ({"max_position_embeddings": -1}, [], 0),
        (None, None, 0),
    ],
)
def test_how_many_tokens_a_model_takes(
    config: object, tokenizer_config: object, length: int
) -> None:
    assert find_context_length(config, tokenizer_config) == length


def test_a_card_without_a_name_has_none() -> None:
    assert Card({}).name == ""
    assert Card({}).files == []


def test_equal_records_are_equal() -> None:
    assert Record(RecordKey(Kind.MODEL, OWNER), {}) == Record(RecordKey(Kind.MODEL, OWNER), {})
    assert str(RecordKey(Kind.MODEL, LORA)) == (
        "v1/mdc/dynamo/backend/generate/6e652232af6bf1c3/my_adapter"
    )
