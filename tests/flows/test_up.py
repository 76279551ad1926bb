"""The order in which a desk is started and ended, with small scripts for parts; the real ones: test_outages.py."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.settings import Settings, load_settings
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from flows import up
from flows.arrival import arrival, tell_arrival
from flows.drill_models import publish_policy
from flows.processes import free_port
from flows.up import Desk, Plan, bring_down, bring_up, running
from flows.up_model import RULE, first_champion
from flows.up_prefect import clean_environment, control_of
from flows.up_record import MARK, read_record, write_record
from serving.store import load_version

WORKS = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(600)"
FAILS = "import sys; print('the disk is on fire'); sys.exit(3)"
# As a worker does: a flow run has a session of its own.
LEAVES_A_CHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
ready = pathlib.Path(sys.argv[1])
ready.with_suffix(".new").write_text(str(child.pid))
ready.with_suffix(".new").replace(ready)
time.sleep(600)
"""
ENDS = "print('nothing new')"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": str(tmp_path)})


@pytest.fixture
def ports() -> dict[str, int]:
    return {name: free_port() for name in ("prefect", "service", "backend")}


def plan(folder: Path, name: str, code: str, *, may_end: bool = False) -> Plan:
    ready = folder / f"{name}.ready"
    return Plan(name, (sys.executable, "-c", code, str(ready)), os.environ, ready.exists, name, may_end=may_end)


def small_parts(monkeypatch: pytest.MonkeyPatch, **codes: str) -> None:
    """`prefect` and whatever else `codes` name instead of the real parts; nothing is deployed."""

    def servers(desk: Desk, _: str | None) -> list[Plan]:
        return [plan(desk.state_dir, name, code, may_end=code == ENDS) for name, code in codes.items()]

    monkeypatch.setattr(up, "_servers", servers)
    monkeypatch.setattr(up, "_clients", lambda _: [])
    monkeypatch.setattr(up, "_deploy", lambda *_: None)


def test_what_runs_is_left_alone_what_ended_is_started_again_and_down_ends_all(
    settings: Settings, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, prefect=WORKS, trade=ENDS)
    told: list[tuple[str, str]] = []
    first = bring_up(settings, lambda *what: told.append(what), ports=ports)
    second = bring_up(settings, lambda *what: told.append(what), ports=ports)
    assert second.part("prefect") == first.part("prefect")
    assert ("prefect", "runs already") in told
    assert second.part("trade") != first.part("trade")
    assert running(settings) == second
    bring_down(settings, lambda *_: None)
    part = second.part("prefect")
    assert part is not None
    assert part.leader is None
    assert running(settings) is None
    bring_down(settings, lambda *_: None)  # nothing is left to end


def test_a_part_that_fails_names_its_log_and_takes_the_others_down(
    settings: Settings, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, prefect=WORKS, service=FAILS)
    pids: list[int] = []
    noted = up.write_record
    monkeypatch.setattr(
        up, "write_record", lambda folder, record: (pids.extend(p.pid for p in record.parts), noted(folder, record))
    )
    with pytest.raises(ConfigError, match=r"service exited with code 3; .*service\.log ends:\nthe disk is on fire"):
        bring_up(settings, lambda *_: None, ports=ports)
    assert read_record(settings.paths.state_dir) is None
    assert not any(lives(pid) for pid in set(pids))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_that_is_never_ready_is_given_up(
    settings: Settings, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, prefect="import time; time.sleep(600)")
    monkeypatch.setattr(up, "READY_WITHIN_S", 0.5)
    with pytest.raises(ConfigError, match="prefect was not ready in time"):
        bring_up(settings, lambda *_: None, ports=ports)


def test_a_taken_port_is_refused_before_anything_is_started(settings: Settings, ports: dict[str, int]) -> None:
    refused = pytest.raises(ConfigError, match=f"process {os.getpid()} .* --backend-port")
    with socket.create_server(("127.0.0.1", ports["backend"])), refused:
        bring_up(settings, lambda *_: None, ports=ports)
    assert read_record(settings.paths.state_dir) is None


def test_what_ran_before_survives_a_part_that_fails_now(
    settings: Settings, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, prefect=WORKS)
    before = bring_up(settings, lambda *_: None, ports=ports)
    try:
        small_parts(monkeypatch, prefect=WORKS, trade=WORKS, backend=FAILS)
        with pytest.raises(ConfigError, match="backend exited with code 3"):
            bring_up(settings, lambda *_: None, ports={})
        after = running(settings)
        assert after is not None and after.part("prefect") == before.part("prefect")
        assert {part.name for part in after.parts if after.runs(part.name)} == {"prefect"}
        with socket.create_server(("127.0.0.1", ports["backend"])), pytest.raises(ConfigError, match="--backend-port"):
            bring_up(settings, lambda *_: None, ports={})
        assert after.runs("prefect")
    finally:
        bring_down(settings, lambda *_: None)


def test_a_start_that_was_killed_before_the_flows_were_deployed_is_made_up_for(
    settings: Settings, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, prefect=WORKS)
    deployed: list[Path] = []
    monkeypatch.setattr(up, "_deploy", lambda desk, _: deployed.append(desk.state_dir))
    record = bring_up(settings, lambda *_: None, ports=ports)
    try:
        write_record(settings.paths.state_dir, record.model_copy(update={"deployed": False}))  # as it was until then
        assert [bring_up(settings, lambda *_: None, ports={}).deployed for _ in range(2)] == [True, True]
        assert len(deployed) == 2
    finally:
        bring_down(settings, lambda *_: None)


def test_a_part_that_an_earlier_command_began_is_waited_for(
    settings: Settings, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, prefect=WORKS)
    first = bring_up(settings, lambda *_: None, ports=ports)
    ready = settings.paths.state_dir / "prefect.ready"
    try:
        ready.unlink()  # as if the earlier command had been killed before this
        monkeypatch.setattr(up, "READY_WITHIN_S", 0.5)
        with pytest.raises(ConfigError, match="prefect was not ready in time"):
            bring_up(settings, lambda *_: None, ports={})
        assert first.runs("prefect")
        ready.touch()
        assert bring_up(settings, lambda *_: None, ports={}) == first
    finally:
        bring_down(settings, lambda *_: None)


def test_what_a_killed_desk_left_behind_is_ended_before_a_new_one_begins(
    settings: Settings, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, prefect=LEAVES_A_CHILD)
    first = bring_up(settings, lambda *_: None, ports=ports)
    child = int((settings.paths.state_dir / "prefect.ready").read_text())
    part = first.part("prefect")
    leader = None if part is None else part.leader
    assert leader is not None
    leader.kill()
    leader.wait(20)
    assert lives(child)
    small_parts(monkeypatch, prefect=WORKS)
    second = bring_up(settings, lambda *_: None, ports=ports)
    try:
        assert not lives(child)
        assert second.mark != first.mark
    finally:
        bring_down(settings, lambda *_: None)


def test_down_ends_what_was_started_and_did_not_come_on_record(
    settings: Settings, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, prefect=WORKS)
    record = bring_up(settings, lambda *_: None, ports=ports)
    code = "import time; print(1, flush=True); time.sleep(600)"
    command, env = [sys.executable, "-c", code], os.environ | {MARK: record.mark_of("backend")}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, start_new_session=True) as stray:
        assert stray.stdout is not None and stray.stdout.readline()
        bring_down(settings, lambda *_: None)
        assert not lives(stray.pid)


def test_a_running_desk_does_not_move_to_other_ports(
    settings: Settings, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, prefect=WORKS)
    before = bring_up(settings, lambda *_: None, ports=ports)
    try:
        with pytest.raises(ConfigError, match="runs already"):
            bring_up(settings, lambda *_: None, ports={"backend": free_port()})
        with pytest.raises(ConfigError, match=r"on the synthetic market; for .*bars\.parquet end it first"):
            bring_up(settings, lambda *_: None, ports={}, data=Path("bars.parquet"))
        assert running(settings) == before
    finally:
        bring_down(settings, lambda *_: None)


def test_the_first_champion_is_a_rule_that_the_service_loads(settings: Settings) -> None:
    assert first_champion(settings) == (RULE, False)
    assert first_champion(settings) == (RULE, False)
    loaded = load_version(settings.paths.state_dir / "models", RULE, size_limit_mb=100)
    assert loaded.manifest.imported


def test_a_published_incumbent_comes_before_the_rule_and_an_hrm_never(settings: Settings) -> None:
    store = settings.paths.state_dir / "models"
    publish_policy(store, "hrm/v1")
    assert first_champion(settings) == (RULE, False)
    publish_policy(store, "ppo/v1")
    publish_policy(store, "ppo/v2")
    assert first_champion(settings) == ("ppo/v2", False)


def test_who_decided_before_goes_on(settings: Settings) -> None:
    publish_policy(settings.paths.state_dir / "models", "ppo/v1")
    store = RolloutStore(settings.paths.state_dir / "rollout.db", settings.rollout)
    store.apply(Change(Command.START, time.time(), champion="ppo/v0", challenger="hrm/v0"))
    store.close()
    assert first_champion(settings) == ("ppo/v0", True)


def test_prefect_s_password_is_made_once_for_this_user_alone(tmp_path: Path) -> None:
    control = control_of(tmp_path, 4200)
    assert control_of(tmp_path, 4200).auth == control.auth
    assert stat.S_IMODE((tmp_path / "prefect" / "auth").stat().st_mode) == 0o600
    assert control.auth.partition(":")[2] not in repr(control)
    assert control.server_environment()["PREFECT_SERVER_API_AUTH_STRING"] == control.auth
    (tmp_path / "prefect" / "auth").write_text("no password")
    with pytest.raises(ConfigError, match="delete it for a new one"):
        control_of(tmp_path, 4200)


def test_another_prefect_s_settings_are_not_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://elsewhere.invalid/api")
    monkeypatch.setenv("PREFECT_API_KEY", "a secret")
    env = clean_environment(tmp_path, 8100)
    assert not [name for name in env if name.startswith("PREFECT_")]
    assert (env["HRM_SERVING__HOST"], env["HRM_SERVING__PORT"]) == ("127.0.0.1", "8100")


def test_the_same_bars_arrive_once_and_without_a_server_nobody_is_told(tmp_path: Path) -> None:
    file, copy = tmp_path / "a.parquet", tmp_path / "b.parquet"
    file.write_bytes(b"bars")
    copy.write_bytes(b"bars")
    assert arrival(file)["id"] == arrival(copy)["id"]
    copy.write_bytes(b"more bars")
    assert arrival(file)["id"] != arrival(copy)["id"]
    assert not tell_arrival(file, {})
    assert not tell_arrival(file, {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"})
