"""The fleet of `demo`: made-up workers that serve, restart, drain, lapse and disagree."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from registry.client.client import RegistryClient
from registry.core.hashing import checksum_of
from registry.core.records import ArtifactKey, Offer, Owner
from registry.errors import Conflict, LeaseGone, RegistryError

STEP_S = 1.0
LEASE_S = 15.0
RENEW_EVERY = 4
"""Steps of a worker between two renewals."""

TURN = 30
"""Steps after which what happens now and then happens again."""


@dataclass(slots=True)
class DemoWorker:
    """A worker that holds models under its lease. Without one it holds them for ever."""

    name: str
    component: str
    instance_id: int
    models: tuple[tuple[str, str], ...]
    lease_s: float | None = LEASE_S
    renews: bool = True
    in_place: bool = False
    owners: list[Owner] = field(default_factory=list)


LLAMA, QWEN, MISTRAL, PHI = "llama-3-8b-instruct", "qwen2-5-7b-instruct", "mistral-7b-v0-3", "phi-4"
LORAS = ("sql-assistant", "support-tone")


class Fleet:
    """Workers of several models. `arrive` attaches them, `live` is one step of their life."""

    def __init__(self, client: RegistryClient, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._steps = itertools.count(1)
        # Milliseconds: a demo that goes on in its directory gives no instance id a second time.
        self._numbers = itertools.count(int(time.time() * 1000))
        self._workers = [
            self._worker("gpu-1", "decode", (LLAMA, "_base"), (LLAMA, LORAS[0])),
            self._worker("gpu-2", "decode", (LLAMA, "_base"), (LLAMA, LORAS[1])),
            self._worker("gpu-3", "prefill", (LLAMA, "_base")),
            self._worker("gpu-4", "decode", (QWEN, "_base"), in_place=True),
            self._worker("gpu-5", "decode", (QWEN, "_base"), in_place=True),
            self._worker("gpu-6", "decode", (MISTRAL, "_base")),
            self._worker("notebook", "decode", (PHI, "_base"), lease_s=None),
        ]
        self._flaky = self._worker("gpu-7", "decode", (LLAMA, "_base"), renews=False, lease_s=5)

    def arrive(self) -> None:
        """Everybody attaches; one file changes under its holders; somebody disagrees."""
        for worker in self._workers:
            self._attach(worker)
        self._come_and_go()
        self._disagree()
        for path in (self._folder / QWEN).glob("generation_config.json"):
            path.write_text('{"changed": "after it was registered"}')
        with suppress(RegistryError):  # Somebody reads it, and so it is noticed.
            self._client.is_held(ArtifactKey(QWEN, "_base", "generation_config.json"))
            self._fetch(ArtifactKey(QWEN, "_base", "generation_config.json"))
        self._client.upload(checksum_of(b"nobody registers this"), b"nobody registers this")
        self._attach(self._flaky)

    def live(self) -> None:
        """One second. What the registry refuses for a moment is tried again in the next."""
        time.sleep(STEP_S)
        step = next(self._steps)
        happening: Mapping[int, Callable[[], None]] = {
            5: self._restart,
            10: self._come_and_go,
            15: self._disagree,
            20: lambda: self._attach(self._flaky),
            25: self._drain,
        }
        with suppress(RegistryError):
            if step % RENEW_EVERY == 0:
                self._renew()
            happening.get(step % TURN, lambda: None)()

    def _worker(
        self,
        name: str,
        component: str,
        *models: tuple[str, str],
        lease_s: float | None = LEASE_S,
        renews: bool = True,
        in_place: bool = False,
    ) -> DemoWorker:
        number = next(self._numbers)
        return DemoWorker(name, component, number, models, lease_s, renews, in_place)

    def _attach(self, worker: DemoWorker) -> None:
        worker.owners = [self._register(worker, *model) for model in worker.models]

    def _register(self, worker: DemoWorker, slug: str, suffix: str) -> Owner:
        lora = None if suffix == "_base" else suffix
        owner = Owner("demo", worker.component, "generate", worker.instance_id, lora)
        offers = [
            self._offer(ArtifactKey(slug, suffix, name), content, in_place=worker.in_place)
            for name, content in files_of(slug, suffix).items()
        ]
        self._client.register(owner, offers, lease_ttl_s=worker.lease_s, worker_name=worker.name)
        return owner

    def _offer(self, key: ArtifactKey, content: bytes, *, in_place: bool) -> Offer:
        checksum = checksum_of(content)
        if not in_place:
            self._client.upload(checksum, content)
            return Offer(key, None, checksum, len(content))
        path = self._folder / key.slug / key.filename
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return Offer(key, str(path), checksum, len(content))

    def _fetch(self, key: ArtifactKey) -> None:
        found = self._client.explain(key)
        if found.entry is not None:
            with (self._folder.parent / "fetched").open("wb") as into:
                self._client.download(key, found.entry.checksum, found.entry.size, into)

    # What happens now and then

    def _renew(self) -> None:
        """Everybody with a lease, but who forgets it. Who was ended comes back."""
        for worker in self._workers:
            if worker.lease_s is not None:
                outcomes = self._client.renew_many(worker.owners)
                if any(isinstance(each, LeaseGone) for each in outcomes):
                    self._attach(worker)

    def _restart(self) -> None:
        """A worker comes back under its name, with another instance id."""
        worker = self._workers[1]
        worker.instance_id = next(self._numbers)
        self._attach(worker)

    def _come_and_go(self) -> None:
        """A model that is there for a moment."""
        visitor = self._worker("batch-job", "decode", ("gemma-2-2b-it", "_base"))
        self._attach(visitor)
        for owner in visitor.owners:
            self._client.unregister_for_owner(owner)

    def _disagree(self) -> None:
        """A worker offers another tokenizer for a model that others hold."""
        content = b'{"version": "1.1", "model": {"type": "BPE"}}'
        key = ArtifactKey(LLAMA, "_base", "tokenizer_config.json")
        owner = Owner("demo", "decode", "generate", 4242)
        with suppress(Conflict):
            self._client.register(
                owner, [self._offer(key, content, in_place=False)], lease_ttl_s=LEASE_S
            )

    def _drain(self) -> None:
        """A worker announces that it will go, and takes that back when it renews next time."""
        for owner in self._workers[2].owners:
            self._client.drain(owner, deadline_s=10)


def files_of(slug: str, suffix: str) -> dict[str, bytes]:
    """The metadata files of a made-up model, or of one of its LoRAs."""
    if suffix != "_base":
        adapter = {"peft_type": "LORA", "r": 16, "base_model_name_or_path": slug, "name": suffix}
        return {"adapter_config.json": _json(adapter)}
    vocabulary: Sequence[str] = [f"{slug}-{number}" for number in range(2000)]
    return {
        "config.json": _json({"architectures": ["ForCausalLM"], "model_type": slug}),
        "generation_config.json": _json({"temperature": 0.7, "top_p": 0.9}),
        "tokenizer.json": _json({"version": "1.0", "model": {"vocab": vocabulary}}),
        "tokenizer_config.json": _json({"tokenizer_class": "PreTrainedTokenizerFast"}),
        "chat_template.jinja": b"{% for message in messages %}{{ message.content }}{% endfor %}\n",
    }


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()
