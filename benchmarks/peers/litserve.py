"""LitServe with our engine: `litserve.py TOLD`, a server until it is terminated. In its own environment (peers.py).

TOLD is a JSON object: root (of our packages), model, port, and what is tuned: max_batch_size, batch_timeout (s),
workers_per_device, num_api_servers, fast_queue (ZeroMQ instead of a multiprocessing queue).
"""

import json
import sys
from typing import Annotated, Any

import litserve as ls
import numpy as np
from fastapi import Body

told = json.loads(sys.argv[1])
sys.path.append(told["root"])

from benchmarks.raw_decisions import RawEngine  # noqa: E402 - from the path that was just appended


class Decisions(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.engine = RawEngine(told["model"])

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Any:
        return self.engine.row(request)

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        return self.engine.decide(np.atleast_2d(x))

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    api = Decisions(max_batch_size=told["max_batch_size"], batch_timeout=told["batch_timeout"])
    server = ls.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=told["workers_per_device"],
        fast_queue=told["fast_queue"],
    )
    server.run(
        host="127.0.0.1",
        port=told["port"],
        num_api_servers=told["num_api_servers"],
        log_level="error",
        generate_client_file=False,
        access_log=False,
    )
