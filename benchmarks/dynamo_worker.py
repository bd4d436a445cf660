"""A worker of NVIDIA Dynamo that registers a model and serves the model's files itself.

    build/dynamo/bin/python -m benchmarks.dynamo_worker MODEL

Runs in an environment with `ai-dynamo`, which this project is no part of. It prints its version as
soon as its card is published, and takes no requests for the model. The address of its metadata and
the store of its card are in the environment, as in every worker.
"""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version

from dynamo._core import DistributedRuntime, ModelInput, ModelType, WorkerType, register_model


async def main(model: str) -> None:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp", event_plane="zmq")
    await register_model(
        ModelInput.Text,
        ModelType.Chat,
        runtime.endpoint("bench.backend.generate"),
        model,
        "bench",
        worker_type=WorkerType.Aggregated,
        self_host_metadata=True,
    )
    print(version("ai-dynamo"), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
