"""Ray Serve with our engine: `ray_serve.py TOLD`, a server until it is terminated. In its own environment (peers.py).

TOLD is a JSON object: root (of our packages), model, port, folder (of Ray's own files) and what is tuned: replicas,
max_batch_size, batch_wait_timeout_s. RAY_SERVE_... switches come with the environment.
"""

import json
import os
import signal
import sys
import threading
from typing import Any

told = json.loads(sys.argv[1])
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
for _name, _file in (("CONFIG_FILE_LOC", "haproxy.cfg"), ("SOCKET_PATH", "admin.sock"), ("SERVER_STATE_BASE", "")):
    os.environ[f"RAY_SERVE_HAPROXY_{_name}"] = os.path.join(told["folder"], "haproxy", _file)  # noqa: PTH118 - ends with /

import numpy as np  # noqa: E402 - what is imported here reads the environment
import ray  # noqa: E402
from ray import serve  # noqa: E402
from starlette.requests import Request  # noqa: E402

MAX_ONGOING = 256  # requests of one replica: more than there are clients


@serve.deployment(num_replicas=told["replicas"], max_ongoing_requests=MAX_ONGOING, ray_actor_options={"num_cpus": 0.01})
class Decisions:
    def __init__(self) -> None:
        from benchmarks.raw_decisions import RawEngine

        self.engine = RawEngine(told["model"])

    @serve.batch(max_batch_size=told["max_batch_size"], batch_wait_timeout_s=told["batch_wait_timeout_s"])
    async def decide(self, rows: list[Any]) -> list[dict[str, Any]]:
        return self.engine.decide(np.stack(rows))

    async def __call__(self, request: Request) -> dict[str, Any]:
        answer: dict[str, Any] = await self.decide(self.engine.row(await request.body()))
        return answer


if __name__ == "__main__":
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    names = ("HRM_SETTINGS", "HRM_PRESET", "OMP_NUM_THREADS")
    variables = {name: os.environ[name] for name in names} | {"PYTHONPATH": told["root"]}
    ray.init(
        include_dashboard=False,
        num_cpus=os.cpu_count(),
        object_store_memory=100_000_000,
        _temp_dir=told["folder"],
        runtime_env={"env_vars": variables},
        logging_level="error",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": told["port"]}, logging_config={"enable_access_log": False})
    serve.run(Decisions.bind(), route_prefix="/predict")
    stopped.wait()
    serve.shutdown()
    ray.shutdown()
