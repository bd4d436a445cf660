"""Which files and which names a worker takes, when some of them are odd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from registry.client import LoraInfo, Worker
from registry.client.lifecycle import ModelState
from registry.client.model_files import harvest
from registry.core.records import Owner
from registry.discovery import Kind
from registry.discovery.file import FileDiscovery
from registry.errors import Invalid, TooLarge
from tests.models import make_model
from tests.places import on_both
from tests.support import Server

pytestmark = on_both


def entries_of(server: Server, slug: str) -> int:
    return len(server.client.get("/v1/artifacts", params={"slug": slug}).json()["artifacts"])


# Names that make one slug


def test_a_lora_is_detached_by_its_own_name_only(shared_server: Server, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    with Worker(shared_server.url, Owner("slugs", "backend", "generate", 1)) as worker:
        worker.attach(model, name="Org/Slugs")
        worker.attach(model, name="Org/Slugs", lora=LoraInfo("customer.v1"))
        for other in ("Customer V1", "customer_v1", "CUSTOMER.V1"):
            with pytest.raises(Invalid, match=r"'customer.v1', which is there, both make the slug"):
                worker.detach(lora=other)
            with pytest.raises(Invalid, match=r"which is there|attached already"):
                worker.attach(model, name="Org/Slugs", lora=LoraInfo(other))
        assert worker.states["customer_v1"] is ModelState.ATTACHED
        assert worker.detach(lora="customer.v1").released == len(harvest(model).files)
        worker.attach(model, name="Org/Slugs", lora=LoraInfo("Customer V1"))


def test_two_names_of_a_base_model_that_make_one_slug_are_told_apart(
    shared_server: Server, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    with Worker(shared_server.url, Owner("slugs", "backend", "generate", 2)) as worker:
        worker.attach(model, name="Org/Base.1")
        with pytest.raises(Invalid, match=r"'Org/Base_1' and 'Org/Base.1', which is there"):
            worker.attach(model, name="Org/Base_1", lora=LoraInfo("l"))
        worker.attach(model, name="Org/Base.1", lora=LoraInfo("l"))


def test_another_process_s_lora_whose_name_makes_the_same_slug_is_left_alone(
    shared_server: Server, tmp_path: Path
) -> None:
    model, store = make_model(tmp_path / "model"), f"file:{tmp_path}/kv"
    me = Owner("slugs", "backend", "generate", 3)
    with (
        Worker(shared_server.url, me, discovery=store) as first,
        Worker(shared_server.url, me, discovery=store) as second,
    ):
        card = first.attach(model, name="Org/Slugs", lora=LoraInfo("customer.v1"))
        with pytest.raises(Invalid, match=r"'customer.v1', which is there"):
            second.attach(model, name="Org/Slugs", lora=LoraInfo("Customer V1"))
        with pytest.raises(Invalid, match=r"'customer.v1', which is there"):
            second.detach(lora="Customer V1")
        [record] = FileDiscovery(tmp_path / "kv").list(Kind.MODEL)
        assert record.card == card
        # Who names it right may take it off, as after a restart.
        assert second.detach(lora="customer.v1").released > 0


# Files that are left out


def test_a_file_that_is_too_large_for_the_service_is_neither_registered_nor_in_the_card(
    serve: Callable[..., Server], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(max_blob_bytes=100_000, artifact_root=tmp_path)
    model = make_model(tmp_path / "model")
    (model / "shard.of.a.new.kind").write_bytes(b"w" * 100_001)
    for number, in_place in enumerate((False, True)):
        caplog.clear()
        with Worker(server.url, Owner("large", "backend", "generate", number)) as worker:
            card = worker.attach(model, name="Org/Large", in_place=in_place)
            assert "shard.of.a.new.kind" not in [file.filename for file in card.files]
            assert entries_of(server, "org_large") == len(card.files)
        assert "'shard.of.a.new.kind' is left out: it is larger than the service" in caplog.text
        (model / "tokenizer.json").write_bytes(b"w" * 100_001)
        refused = pytest.raises(TooLarge, match=r"tokenizer.json' has 100001 bytes; .* 100000 ")
        with Worker(server.url, Owner("large", "backend", "generate", number)) as worker, refused:
            worker.attach(model, name="Org/Large", in_place=in_place)
        make_model(model)
    assert entries_of(server, "org_large") == 0


def test_what_is_excluded_is_in_no_card_and_several_vocabularies_are_asked_about_first(
    shared_server: Server, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    (model / "tokenizer.json").unlink()
    for name in ("a.tiktoken", "b.tiktoken"):
        (model / name).write_text("aGVsbG8= 0\n")
    with Worker(shared_server.url, Owner("vocab", "backend", "generate", 1)) as worker:
        with pytest.raises(Invalid, match="Exclude all but one"):
            worker.attach(model, name="Org/Vocab")
        assert entries_of(shared_server, "org_vocab") == 0
        card = worker.attach(model, name="Org/Vocab", exclude=["b.*"])
        assert list(card.content["tokenizer"]) == ["tik_token_model"]
        assert "b.tiktoken" not in [file.filename for file in card.files]
