"""A peer's environment is whole or absent, its script sees arrays and parameters, and what is missing is said."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.peers import PEERS, Peer, PeerError, beside, installed, run_peer


def wheel(folder: Path) -> str:
    """A requirement that installs without a network: one module, one constant."""
    file = folder / "tinypeer-1.0-py3-none-any.whl"
    info = "tinypeer-1.0.dist-info"
    members = {
        "tinypeer.py": "ANSWER = 42\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinypeer\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for name, text in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(text)}")
    members[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return file.as_uri()


SCRIPT = """
import json, os, sys, zipfile
import tinypeer
asked = json.load(sys.stdin)
print("chatter")
members = zipfile.ZipFile(asked["arrays"]).namelist()
print(json.dumps({"answer": tinypeer.ANSWER, "members": members, "fee": asked["fee"],
                  "threads": os.environ["OMP_NUM_THREADS"], "ours": any("main" == p for p in sys.path)}))
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    monkeypatch.setattr(peers, "SCRIPTS", folder)
    return folder


def test_a_script_runs_in_its_own_environment_on_one_thread(tmp_path: Path, scripts: Path) -> None:
    (scripts / "tinypeer.py").write_text(SCRIPT)  # named like the library: it must not import itself
    peer = Peer("tinypeer", (wheel(tmp_path),))
    answer = run_peer(peer, tmp_path, {"close": np.arange(3.0)}, fee=0.5)
    assert answer == {"answer": 42, "members": ["close.npy"], "fee": 0.5, "threads": "1", "ours": False}
    built = installed(peer, tmp_path)
    (built / "marker").touch()
    assert (installed(peer, tmp_path) / "marker").exists()  # found again, not built again
    assert [path.name for path in (tmp_path / "peers").iterdir()] == [built.name]
    (scripts / "tinypeer.py").write_text("print('no object')")
    with pytest.raises(PeerError, match="JSON object"):
        run_peer(peer, tmp_path, {})
    (scripts / "tinypeer.py").write_text("raise ValueError('bars are odd')")
    with pytest.raises(PeerError, match="bars are odd"):
        run_peer(peer, tmp_path, {})


def test_a_peer_that_cannot_be_installed_is_absent_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = (tmp_path / "nowhere-1.0-py3-none-any.whl").as_uri()
    monkeypatch.setitem(PEERS, "vectorbt", Peer("vectorbt", (nowhere,)))
    found = beside(("vectorbt",), tmp_path, {})
    assert "nowhere-1.0" in found["vectorbt"]["absent"]
    assert list((tmp_path / "peers").iterdir()) == []


def test_other_pins_or_another_python_are_another_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer("x", ("a==1",))
    assert peer.digest == Peer("x", ("a==1",)).digest
    assert peer.digest != Peer("x", ("a==2",)).digest
    before = peer.digest
    monkeypatch.setattr(sys, "version", "4.0")
    assert peer.digest != before


def test_every_peer_is_pinned_exactly() -> None:
    assert all("==" in pin for peer in PEERS.values() for pin in peer.pins)
