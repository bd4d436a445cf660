"""The smallest engine for NVIDIA Dynamo: answers with the tokens that it was asked with.

    python examples/dynamo_engine.py dynamo.backend.generate

Runs in an environment with `ai-dynamo-runtime`, which this project is no part of. It takes
requests, and publishes where; the model's card and files are the business of a
`registry.client.Worker`, or of `metadata-registry attach --hold`, with the instance id that is
printed first.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from dynamo._core import DistributedRuntime


async def generate(request: dict[str, Any], context: object = None) -> AsyncIterator[object]:
    """Say again what the prompt says."""
    for token in request["token_ids"]:
        yield {"token_ids": [token]}
    yield {"token_ids": [], "finish_reason": "stop"}


async def main(path: str) -> None:
    loop = asyncio.get_running_loop()
    runtime = DistributedRuntime(loop, "file", "tcp", event_plane="zmq")
    endpoint = runtime.endpoint(path)
    print(endpoint.connection_id(), flush=True)
    await endpoint.serve_endpoint(generate)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
