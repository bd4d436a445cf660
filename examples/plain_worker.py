"""A worker that knows nothing of a registry: it serves its files itself and publishes their card,
as a worker of NVIDIA Dynamo does.

    python examples/plain_worker.py MODEL_DIR NAME file:/var/run/dynamo
"""

from __future__ import annotations

import argparse
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from registry import Owner, slugify
from registry.client.model_files import harvest
from registry.core.hashing import checksum_of
from registry.discovery import RecordKey, model_record, open_discovery
from registry.discovery.cards import CardFile, make_card

OWNER = Owner("dynamo", "backend", "generate", instance_id=12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("name")
    parser.add_argument("discovery")
    arguments = parser.parse_args()

    prefix = f"/v1/metadata/dynamo/backend/generate/{slugify(arguments.name)}/_base"
    files = {f"{prefix}/{file.filename}": file.path for file in harvest(arguments.model).files}
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(files))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    base = f"http://127.0.0.1:{server.server_port}"
    contents = {path: file.read_bytes() for path, file in files.items()}
    card = make_card(
        arguments.name,
        [CardFile(base + path, checksum_of(each), len(each)) for path, each in contents.items()],
    )
    store = open_discovery(arguments.discovery)
    record = model_record(OWNER, card)
    store.publish(record)
    print(f"{arguments.name} is published", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    store.withdraw(RecordKey(record.key.kind, OWNER))


def handler_of(files: dict[str, Path]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = files.get(self.path)
            content = b"" if file is None else file.read_bytes()
            self.send_response(404 if file is None else 200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    return Handler


if __name__ == "__main__":
    # Threads that are started later leave these signals to the main one.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
