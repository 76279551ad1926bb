"""Whole-request batching with our own engine: `python -m benchmarks.serving_whole MODEL PORT`, the baseline of joining.

The same threads, the same number of rows and the same segments as serving/batcher.py; only that a batch runs until its
last row has halted before anything else begins, and is answered then. Bare ASGI: it has no routes, tokens or logs.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray

from benchmarks.raw_decisions import RawEngine
from core.settings import load_settings
from serving.batcher import cores
from serving.pace import rows_within

Waiting = tuple[NDArray[np.float32], asyncio.Future[dict[str, Any]]]


class WholeRequests:
    """An ASGI application: POST a raw body, get its decision."""

    def __init__(self, model_id: str) -> None:
        settings = load_settings()
        self._raw = RawEngine(model_id)
        limit_ms = settings.performance.inference_timeout_ms
        self._rows = rows_within(self._raw.engine, limit_ms, settings.serving.max_rows)
        self._threads = cores(settings.serving)
        self._pool = ThreadPoolExecutor(self._threads)
        self._waiting: asyncio.Queue[Waiting] = asyncio.Queue()
        self._work: list[asyncio.Task[None]] = []

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((self._raw.row(body), answer))
        said = json.dumps(await answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(said)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    async def _live(self, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        await receive()
        self._work = [asyncio.create_task(self._run_batches()) for _ in range(self._threads)]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in self._work:
            task.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def _run_batches(self) -> None:
        """One thread's life: whoever waits becomes a batch, and the batch runs to its end."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._rows and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            rows = np.stack([row for row, _ in batch])
            answers = await asyncio.get_running_loop().run_in_executor(self._pool, self._raw.decide, rows)
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


def main() -> None:
    model_id, port = sys.argv[1:]
    uvicorn.run(WholeRequests(model_id), host="127.0.0.1", port=int(port), log_level="critical", ws="none")


if __name__ == "__main__":
    main()
