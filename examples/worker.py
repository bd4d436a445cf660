"""A serving worker: registers a model's files, publishes its card, and takes both back at the end.

    python examples/worker.py MODEL_DIR NAME --discovery file:/tmp/discovery [--lora NAME]...

Needs a running registry (`make run`). Stop it with Ctrl-C or SIGTERM; if it is killed instead, its
card lapses within 10 s, and the registry releases its files when the lease and its grace are over.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import threading

from registry import Owner, RegistryError
from registry.client import LoraInfo, Worker


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the metadata files of a model.")
    parser.add_argument("model_dir")
    parser.add_argument("name", help="the name that requests use, like Org/Model")
    parser.add_argument("--url", default="http://127.0.0.1:8090", help="the registry")
    parser.add_argument("--discovery", required=True, help="where frontends look: file:/DIRECTORY")
    parser.add_argument("--lora", action="append", default=[], help="a LoRA on this model")
    arguments = parser.parse_args()

    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())

    def tell(owner: Owner, error: RegistryError) -> None:
        print(f"{owner} is served no more: {error}", flush=True)

    # An inference engine knows its own instance id; here any number does.
    owner = Owner("dynamo", "backend", "generate", secrets.randbits(64))
    with Worker(arguments.url, owner, discovery=arguments.discovery, on_problem=tell) as worker:
        card = worker.attach(arguments.model_dir, name=arguments.name)
        print(f"serving {card.name}: {len(card.files)} files", flush=True)
        for name in arguments.lora:
            worker.attach(arguments.model_dir, name=arguments.name, lora=LoraInfo(name))
            print(f"serving {name} on it", flush=True)
        over.wait()
    print("detached", flush=True)


if __name__ == "__main__":
    main()
