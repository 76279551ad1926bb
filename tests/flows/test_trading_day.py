"""A rehearsed day, bounded: eight symbols, thirty bars, and dear orders, so that a broken challenger is found soon.

The whole one is `make rehearse`.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from core.actions import ACTION_OF
from core.errors import ConfigError, DataError
from core.settings import load_settings
from flows import rollout_commands
from flows.trading_day import BOOK_LIMIT_PCT, HALF, Played, plan_of, play
from flows.trading_day_market import replayed_day, synthetic_day
from flows.trading_day_models import NEVER, policy_graph, ratio_of_session
from flows.trading_day_report import render, write
from flows.trading_day_story import Story, failures, story
from serving.schemas_rollout import Event
from trading.features import schema
from trading.files import to_frame, write_bars
from trading.ledger import Ledger
from trading.synthetic import simulate

BARS, SYMBOLS = 30, 8
SHORT = {
    "HRM_SYNTHETIC_MARKET__BARS_PER_SESSION": str(BARS),
    "HRM_TRADING__COST_BPS": "4",
    "HRM_OBSERVATION__WINDOW": "20",
    "HRM_OBSERVATION__PATCH": "20",
    "HRM_DELIVERY__NOTIFICATIONS__WEBHOOKS": '[{"name": "desk", "url_env": "NOT_SET", "min_severity": "info"}]',
}
SETTINGS = load_settings(preset="compact", environ=SHORT)  # with someone to tell, whom a rehearsal does not bother


@dataclass(frozen=True)
class Rehearsed:
    played: Played
    story: Story


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    played = play(SETTINGS, synthetic_day(SETTINGS, SYMBOLS, 0), tmp_path_factory.mktemp("day"))
    return Rehearsed(played, story(played, SETTINGS.trading.initial_capital))


@pytest.fixture
def ledger(rehearsed: Rehearsed) -> Iterator[Ledger]:
    with closing(Ledger(rehearsed.played.folder / "paper.db")) as found:
        yield found


def test_a_challenger_that_loses_is_rolled_back_and_every_unit_is_accounted_for(rehearsed: Rehearsed) -> None:
    assert rehearsed.story["failures"] == []
    figures = rehearsed.story["figures"]
    assert figures["trigger"] == "drawdown_exceeded"
    assert figures["breach"]["symbol"] == ""
    assert figures["breach"]["lost_pct"] > BOOK_LIMIT_PCT
    assert figures["decisions"] == SYMBOLS * (BARS - 1)
    assert figures["handed_over"] > 0
    assert figures["minutes_until_flat"] <= 15
    assert figures["reconciliation_differences"] == figures["held_after_close"] == figures["stale_orders_accepted"] == 0


def test_answers_that_come_late_over_a_rollback_lead_to_orders_of_an_old_epoch_and_they_are_refused(
    rehearsed: Rehearsed,
) -> None:
    refused = rehearsed.story["refused"]
    assert {one["reason"] for one in refused} == {"stale_epoch"}
    assert all(one["owner"].startswith("challenger:") for one in refused)
    assert len(refused) == rehearsed.story["figures"]["stale_orders_refused"] > 0


def test_the_plan_is_walked_weight_by_weight_and_its_gates_are_passed_by_the_controller(rehearsed: Rehearsed) -> None:
    events = rehearsed.story["events"]
    assert [one["weight"] for one in events if one["command"] == "promote"] == [5, 25, 50]
    assert [one["actor"] for one in events if one["command"] == "advance"] == ["controller"] * len(
        [one for one in events if one["command"] == "advance"]
    )
    assert len([one for one in events if one["command"] == "advance"]) >= 2
    assert [one["command"] for one in events][-1] == "rollback"
    assert events[-1]["actor"] == "guard"
    weights = [minute.weight for minute in rehearsed.played.minutes]
    assert sorted(set(weights)) == [0, 5, 25, 50]
    assert weights[-1] == 0


def test_a_symbol_changes_hands_only_when_flat_or_handed_over(rehearsed: Rehearsed) -> None:
    taken = {one["symbol"] for one in rehearsed.story["handovers"]}
    minutes = rehearsed.played.minutes
    for before, after in pairwise(minutes):
        for symbol, holder in before.holders.items():
            same_side = after.units.get(symbol, 0.0) * before.units[symbol] > 0
            if same_side and after.holders[symbol] != holder:
                assert symbol in taken
                assert after.phase == "rolled_back"


def test_the_service_counts_the_money_that_trading_counts(rehearsed: Rehearsed) -> None:
    last_with_two_arms = [minute for minute in rehearsed.played.minutes if minute.phase != "rolled_back"][-1]
    bar = rehearsed.played.minutes.index(last_with_two_arms)
    earned = [one for one in rehearsed.played.notes.earned if one.bar <= bar]
    for arm, drawdown_bps in (
        ("champion", last_with_two_arms.champion_drawdown_bps),
        ("challenger", last_with_two_arms.challenger_drawdown_bps),
    ):
        curve = np.cumsum([0.0, *(getattr(one, f"{arm}_bps") for one in earned)])
        within_a_bar = max(abs(getattr(one, f"{arm}_bps")) for one in earned)  # outcomes of a bar come in any order
        assert (curve.max() - curve[-1]) / SYMBOLS == pytest.approx(drawdown_bps, abs=within_a_bar)


def test_before_the_challenger_has_symbols_the_real_book_is_the_champions_alone(rehearsed: Rehearsed) -> None:
    shadow = [row for row in rehearsed.story["minutes"] if row["phase"] == "shadow"]
    assert len(shadow) > 2
    assert any(abs(row["champion_bps"]) > 0.2 for row in shadow)
    for row in shadow:  # units are whole: a fiftieth of the capital
        assert row["real_bps"] == pytest.approx(row["champion_bps"], rel=0.02, abs=0.02)


def test_the_real_result_is_what_the_ledger_realised(rehearsed: Rehearsed, ledger: Ledger) -> None:
    realised = sum(position.realised for position in ledger.positions())
    assert rehearsed.story["figures"]["real_rupees"] == pytest.approx(realised, abs=1.0)
    assert ledger.discrepancies() == []
    assert ledger.holdings() == {}


def test_every_position_of_the_challenger_is_handed_over_and_let_go_within_the_plans_time(rehearsed: Rehearsed) -> None:
    rows = rehearsed.story["handovers"]
    assert {row["mode"] for row in rows} == {"reduce_only"}
    assert {row["to"] for row in rows} == {"champion:ppo/v1"}
    assert all(0 < row["minutes"] <= 15 for row in rows)
    rolled_back = next(one for one in rehearsed.played.minutes if one.phase == "rolled_back")
    still_held = {symbol for symbol, holder in rolled_back.holders.items() if holder == "challenger"}
    assert still_held <= {row["symbol"] for row in rows}


def _decided_late(played: Played) -> Played:
    rollback = next(event for event in played.events if event.command == "rollback")
    late = replace(played.notes.decided[-1], role="challenger", acting="challenger", at=rollback.at + 1.2)
    return replace(played, notes=replace(played.notes, decided=[*played.notes.decided, late]))


def _unanswered(played: Played) -> Played:
    none = replace(played.notes.decided[-1], role="none")
    return replace(played, notes=replace(played.notes, decided=[*played.notes.decided, none]))


def _moved(played: Played) -> Played:
    moved = replace(played.notes.decided[-1], acting="challenger", role="champion", mode=None)
    return replace(played, notes=replace(played.notes, decided=[*played.notes.decided, moved]))


def _stale(played: Played) -> Played:
    order = next(one for one in played.notes.sent if one.refused == "stale_epoch")
    return replace(played, notes=replace(played.notes, sent=[*played.notes.sent, replace(order, at=0, refused=None)]))


def _does_not_add_up(played: Played) -> Played:
    return replace(played, minutes=[replace(played.minutes[0], discrepancies=["a", "b"]), *played.minutes[1:]])


def _stopped_early(played: Played) -> Played:
    def stopped(event: Event) -> Event:
        state = json.loads(event.state)
        return event.model_copy(update={"state": json.dumps(state | {"weight": min(state["weight"], 25)})})

    return replace(played, events=[stopped(event) for event in played.events])


def _another_trigger(played: Played) -> Played:
    told = {"rollback": "performance_degradation"}
    events = [event.model_copy(update={"reason": told.get(event.command, event.reason)}) for event in played.events]
    return replace(played, events=events)


SEEN: list[tuple[Callable[[Played], Played], str]] = [
    (_decided_late, "acted 1200 ms after the breach"),
    (_unanswered, "1 questions got no answer"),
    (_moved, "1 decisions were another arm's"),
    (_stale, "1 orders of an old epoch"),
    (_does_not_add_up, "2 times the ledger"),
    (_stopped_early, "25 % only"),
    (_another_trigger, "rolled back by performance_degradation"),
]


@pytest.mark.parametrize(("happened", "words"), SEEN)
def test_what_must_not_happen_is_seen_and_told_in_words(
    rehearsed: Rehearsed, happened: Callable[[Played], Played], words: str
) -> None:
    told = story(happened(rehearsed.played), SETTINGS.trading.initial_capital)
    assert [words in why for why in told["failures"]] == [True]
    assert not told["passed"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("handed_over", 0, "nothing that could be handed over"),
        ("not_flat_after_handover", 1, "1 positions were not flat"),
        ("held_after_close", 4, "4 positions or open orders"),
        ("breach_to_last_challenger_order_ms", 1500.0, "1500 ms after the breach"),
    ],
)
def test_what_must_not_be_in_the_end_is_told_in_words(
    rehearsed: Rehearsed, name: str, value: float, words: str
) -> None:
    (told,) = failures(rehearsed.story["figures"] | {name: value})
    assert words in told


def test_a_position_that_is_left_is_found_in_the_ledger(rehearsed: Rehearsed, tmp_path: Path) -> None:
    shutil.copytree(rehearsed.played.folder, tmp_path / "day")
    with closing(sqlite3.connect(tmp_path / "day" / "paper.db")) as database, database:
        last = database.execute("SELECT max(seq) FROM fills WHERE symbol = 'SYN01'").fetchone()[0]
        database.execute("DELETE FROM fills WHERE seq = ?", (last,))
    told = story(replace(rehearsed.played, folder=tmp_path / "day"), SETTINGS.trading.initial_capital)
    assert any("1 positions or open orders were left" in why for why in told["failures"])


def test_a_rehearsal_in_which_nobody_rolled_back_is_told_too(rehearsed: Rehearsed) -> None:
    told = copy.deepcopy(rehearsed.story)
    told["events"] = [event for event in told["events"] if event["command"] != "rollback"]
    told["figures"] |= {"trigger": None, "breach": None, "handed_over": 0, "minutes_until_flat": None}
    told |= {"handovers": [], "refused": [], "failures": failures(told["figures"]), "passed": False}
    html = render(told)
    assert "Nobody rolled back" in html
    assert "rolled back by nobody" in html


def test_the_page_shows_the_day_and_loads_nothing_from_outside(rehearsed: Rehearsed, tmp_path: Path) -> None:
    html = write(rehearsed.story, tmp_path).read_text(encoding="utf-8")
    assert json.loads((tmp_path / "day.json").read_text(encoding="utf-8")) == rehearsed.story
    assert html.count("<svg") == 2
    assert "Synthetic market: simulated, not traded" in html
    ended = next(one["at"] for one in rehearsed.story["events"] if one["command"] == "rollback")
    assert f"Rolled back at {ended}, flat by" in html
    for what in (
        "rolled back",
        "drawdown_exceeded",
        "stale epoch",
        "handed over:",
        "the challenger&#39;s policy breaks",
    ):
        assert what in html
    assert len(re.findall(r"<tr class=\"(?:shadow|canary|rolled_back)", html)) == BARS
    assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!#)(?:https?:|//|data:text)', html)
    assert not re.findall(r"<(?:script|link|iframe|img)\b", html)


def test_a_position_that_never_came_to_nothing_is_shown_as_such(rehearsed: Rehearsed) -> None:
    told = copy.deepcopy(rehearsed.story)
    told["handovers"][0] |= {"flat_at": None, "minutes": None, "how": "never"}
    html = render(told)
    assert "not flat by the close" in html


def test_a_folder_with_a_rehearsal_in_it_is_left_alone(rehearsed: Rehearsed) -> None:
    with pytest.raises(ConfigError, match="holds a rehearsal already"):
        play(SETTINGS, rehearsed.played.day, rehearsed.played.folder)


def test_the_plan_goes_up_to_a_half_whatever_the_settings_steps_are() -> None:
    def weights(steps: list[int]) -> list[int]:
        rollout = SETTINGS.rollout.model_copy(update={"steps": tuple(steps)})
        return [stage.weight for stage in plan_of(SETTINGS.model_copy(update={"rollout": rollout})).stages]

    assert weights([5, 25, 50, 100]) == [0, 5, 25, HALF]
    assert weights([60, 100]) == [0, HALF]
    assert weights([10, 20, 30, 40]) == [0, 10, 20, 30, 40, HALF]


@pytest.mark.parametrize("position", [-1, 0, 1])
def test_the_broken_policy_is_the_sound_one_until_its_bar_and_then_reverses_every_time(position: int) -> None:
    observation = schema(SETTINGS.observation)
    names = observation.account_features
    sound, broken = (
        ort.InferenceSession(policy_graph(observation, 32, breaks_at), providers=["CPUExecutionProvider"])
        for breaks_at in (NEVER, ratio_of_session(18, BARS))
    )
    rng = np.random.default_rng(0)
    feeds = {
        "bars": np.zeros((BARS, *observation.row_shapes["bars"]), np.float32),
        "account": rng.normal(size=(BARS, len(names))).astype(np.float32),
    }
    feeds["account"][:, names.index("progress")] = np.arange(BARS) / np.float32(BARS - 1)
    feeds["account"][:, names.index("position")] = position
    right, wrong = (session.run(["action_logits"], feeds)[0] for session in (sound, broken))
    np.testing.assert_array_equal(right[:18], wrong[:18])
    legal = ACTION_OF[position + 1]  # by target
    targets = wrong[18:, legal].argmax(axis=1) - 1
    assert set(targets.tolist()) == {-1 if position > 0 else 1}


def test_sessions_of_a_file_become_symbols_of_one_day(tmp_path: Path) -> None:
    law = SETTINGS.synthetic_market.model_copy(update={"bars_per_session": 75})
    bars = simulate(law, sessions=8, seed=1, name="X").bars
    file = tmp_path / "index.parquet"
    write_bars(to_frame(bars), file)
    day = replayed_day(SETTINGS, file, 5)
    assert list(day.bars) == [f"INDEX#{number:02d}" for number in range(1, 6)]
    assert day.session_bars == 75
    for number, lane in enumerate(day.bars.values()):
        begins = len(bars) - 75 * (number + 1)
        np.testing.assert_array_equal(lane.close[-75:], bars.close[begins : begins + 75])
        np.testing.assert_array_equal(lane.timestamps[-75:], day.times)
        assert len(lane) == 4 * 75
    with pytest.raises(DataError, match="5 full sessions"):
        replayed_day(SETTINGS, file, 6)


def test_a_session_after_a_hole_in_the_data_is_no_symbol(tmp_path: Path) -> None:
    law = SETTINGS.synthetic_market.model_copy(update={"bars_per_session": 75})
    frame = to_frame(simulate(law, sessions=30, seed=1, name="X").bars)
    file = tmp_path / "index.parquet"
    write_bars(frame[(frame.index < 18 * 75) | (frame.index >= 25 * 75)], file)  # more than a week is missing
    day = replayed_day(SETTINGS, file, 17)
    assert len(day.bars) == 17  # 2 after the hole, 15 before it
    with pytest.raises(DataError, match="17 full sessions"):
        replayed_day(SETTINGS, file, 18)


def test_the_command_plays_a_day_and_says_where_its_page_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorter = SHORT | {"HRM_SYNTHETIC_MARKET__BARS_PER_SESSION": "20", "HRM_TRADING__COST_BPS": "8"}
    for name, value in (shorter | {"HRM_PRESET": "compact", "HRM_PATHS__STATE_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(rollout_commands.app, ["rehearse", "--symbols", "6", "--json"])
    told = json.loads(result.stdout.splitlines()[-1])
    assert (result.exit_code, told["failures"]) == (0, [])
    assert told["passed"]
    assert Path(told["report"]).parent.parent == tmp_path / "rehearsals"
    assert "Rolled back at" in Path(told["report"]).read_text(encoding="utf-8")


def test_the_command_says_what_is_wrong_with_its_input(tmp_path: Path) -> None:
    result = CliRunner().invoke(rollout_commands.app, ["rehearse", "--data", str(tmp_path / "none.csv")])
    assert isinstance(result.exception, ConfigError)
    assert result.exception.code == "no_such_file"
