"""What went wrong with other people's rollouts, one test each: it does not with ours.

The numbers are those of the reports: argo is argoproj/argo-rollouts, flagger fluxcd/flagger.
"""

from pathlib import Path

import pytest
from desk import LEVEL, Desk

from core.errors import ConfigError, RolloutError
from core.gates import Verdict
from delivery.judges import Reading, judge
from delivery.metrics import Metric
from delivery.plan import Plan, plan_of_steps
from delivery.routing import bucket
from delivery.transitions import Phase, RolloutState

MINUTE = 60.0


def plan(*steps: dict[str, object], **told: object) -> Plan:
    templates = {"level": {"metrics": [LEVEL | {"name": "level", "count": 0, "successCondition": "result <= 1"}]}}
    used = {"analysisTemplates": templates} if "level" in str(told) else {}
    return Plan.model_validate({"steps": steps, **used, **told})


WATCHED = {"templates": [{"name": "level"}]}
BY_HAND = ({"setWeight": 10}, {"pause": {}}, {"setWeight": 60}, {"pause": {}})


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def on_the_way(desk: Desk, where: str) -> RolloutState:
    """A rollout of BY_HAND that is in shadow, in canary, paused, or just promoted."""
    desk.start(plan({"pause": {}}, *BY_HAND))
    for _ in range({"shadow": 0, "canary": 1, "paused": 2, "promoted": 3}[where]):
        desk.ask("promote")
    return desk.ask("pause") if where == "paused" else desk.store.read()


@pytest.mark.parametrize("where", ["shadow", "canary", "paused", "promoted"])
@pytest.mark.parametrize("command", ["abort", "rollback"])
def test_an_abort_is_never_ignored_neither_after_a_promotion_nor_during_a_pause(
    desk: Desk, where: str, command: str
) -> None:
    """argo#4461, argo#1152, flagger#616."""
    on_the_way(desk, where)
    state = desk.ask(command)
    assert (state.phase, state.weight, state.champion, state.challenger) == (Phase.ROLLED_BACK, 0, "ppo/v1", None)


def test_an_abort_with_no_rollout_running_leaves_the_stable_model_alone(desk: Desk) -> None:
    """argo#1292."""
    with pytest.raises(RolloutError) as error:
        desk.ask("abort")
    assert error.value.code == "nothing_to_abort"
    assert desk.store.read().champion == "ppo/v1"


@pytest.mark.parametrize("promotions", range(4))
def test_a_rollback_during_a_promotion_ends_with_the_model_from_before_it(desk: Desk, promotions: int) -> None:
    """flagger#1898: all traffic went to the broken new primary."""
    desk.start(plan({"pause": {}}, *BY_HAND))
    for _ in range(promotions):
        state = desk.ask("promote")
        assert "ppo/v1" in (state.champion, state.fallback)
    assert desk.ask("rollback").champion == "ppo/v1"


@pytest.mark.parametrize("gates", [({"pause": {}},), ({"pause": {"duration": "1d"}},), ()], ids=str)
def test_a_threshold_that_is_passed_at_a_gate_rolls_back(desk: Desk, gates: tuple[dict[str, object], ...]) -> None:
    """flagger#1801: eighteen failures at a gate, and no rollback."""
    approvals = {"approvals": {"required": 1}}  # without a gate it waits for an approval
    desk.start(plan({"setWeight": 10}, *gates, backgroundAnalysis=WATCHED, **approvals))
    assert desk.look("good").weight == 10
    assert desk.look("good").weight == 10
    state = desk.look("bad")
    assert (state.phase, state.trigger) == (Phase.ROLLED_BACK, "level")


@pytest.mark.parametrize("where", ["shadow", "canary", "paused"])
def test_nothing_is_stuck_for_longer_than_its_deadline(desk: Desk, where: str) -> None:
    """flagger#1588, #1450, #1591; argo#4128, #2048, #1677."""
    on_the_way(desk, where)
    assert not desk.look(after_s=6 * 86400.0).latched
    assert desk.look(after_s=2 * 86400.0).trigger == "progress_deadline"


@pytest.mark.parametrize("reading", ["error", "nothing"])
def test_an_analysis_of_which_nothing_was_measured_is_no_success(desk: Desk, reading: str) -> None:
    """argo#4479: "Successful" though every measurement errored."""
    gate = {"analysis": {"templates": [{"name": "level"}]}}
    metric = LEVEL | {"name": "level", "count": 3, "successCondition": "result <= 1"}
    desk.start(
        Plan.model_validate({"steps": [{"setWeight": 10}, gate], "analysisTemplates": {"level": {"metrics": [metric]}}})
    )
    assert desk.look(reading).weight == 10
    for _ in range(20):
        assert desk.look(reading).phase is not Phase.PROMOTED
    assert desk.store.read().latched  # critical, and the challenger decided


def test_an_inconclusive_background_analysis_promotes_nothing(desk: Desk) -> None:
    """argo#3850."""
    told = LEVEL | {"name": "level", "count": 0, "failureCondition": "result > 3", "successCondition": "result < 1"}
    desk.start(
        Plan.model_validate(
            {
                "steps": [{"pause": {}}, {"setWeight": 10}, {"pause": {"duration": 1}}],
                "analysisTemplates": {"level": {"metrics": [told | {"inconclusiveLimit": 100}]}},
                "backgroundAnalysis": WATCHED,
            }
        )
    )
    desk.ask("promote")
    for _ in range(50):
        assert desk.look("bad").phase is Phase.CANARY  # 2 is neither above 3 nor below 1
    assert desk.look("good").phase is Phase.PROMOTED


@pytest.mark.parametrize("on_no_data", ["inconclusive", "fail"])
@pytest.mark.parametrize("reading", [Reading(), Reading(float("nan"), samples=9), Reading(0.1, samples=2)], ids=str)
def test_missing_data_never_passes(on_no_data: str, reading: Reading) -> None:
    """argo#1466, flagger#1035, #1365; with Kayenta no data scored 100."""
    told = LEVEL | {"name": "level", "minSamples": 5, "onNoData": on_no_data, "successCondition": "result <= 1"}
    expected = Verdict.FAIL if on_no_data == "fail" else Verdict.INCONCLUSIVE
    assert judge(Metric.model_validate(told), reading, {}).verdict is expected


def test_a_pause_for_missing_data_is_over_when_there_is_some_and_somebody_resumes(desk: Desk) -> None:
    """argo#1905."""
    gate = {"analysis": WATCHED}
    metric = LEVEL | {"name": "level", "successCondition": "result <= 1"}
    desk.start(
        Plan.model_validate({"steps": [gate, {"setWeight": 10}], "analysisTemplates": {"level": {"metrics": [metric]}}})
    )
    assert desk.look("nothing").paused
    assert desk.look("good").paused
    desk.ask("resume")
    desk.look("good")
    assert desk.look("good").weight == 10


def test_an_aborted_rollout_never_tries_again_by_itself(tmp_path: Path) -> None:
    """argo#2929: a new attempt needs a new revision, and a cool-down."""
    desk = Desk(tmp_path, cool_down_s=5 * MINUTE)
    desk.start(plan({"setWeight": 10}, backgroundAnalysis=WATCHED))
    desk.look("good")
    assert desk.look("bad").latched
    for _ in range(20):
        assert desk.look("good", MINUTE / 10).latched
    for challenger, code in (("hrm/v1", "version_rejected"), ("hrm/v2", "cool_down")):
        with pytest.raises(RolloutError) as error:
            desk.start(plan_of_steps((10,)), challenger)
        assert error.value.code == code
    desk.now += 5 * MINUTE
    assert desk.start(plan_of_steps((10,)), "hrm/v2").phase is Phase.SHADOW


@pytest.mark.parametrize("weights", [(7,), (30, 70, 99), (100,)])
def test_a_promotion_leaves_nobody_with_the_old_model_whatever_the_last_weight(
    desk: Desk, weights: tuple[int, ...]
) -> None:
    """flagger#189: weights that missed the maximum ended in "success" with the old version."""
    desk.start(plan(*({"setWeight": weight} for weight in weights)))
    while (state := desk.look()).phase != Phase.PROMOTED:
        assert state.weight in (0, *weights)
    assert (state.champion, state.fallback) == ("hrm/v1", "ppo/v1")


def test_a_weight_that_does_not_grow_is_refused_before_anything_starts() -> None:
    with pytest.raises((ConfigError, ValueError), match="does not grow"):
        plan({"setWeight": 50}, {"setWeight": 20})


def test_symbols_do_not_leak_to_the_challenger_and_its_share_is_the_weight() -> None:
    """flagger#1647, #1532, argo#2726: sticky sessions moved everybody to the canary within seconds."""
    symbols = [f"SYMBOL{number}" for number in range(20_000)]
    before: set[str] = set()
    for weight in (1, 5, 25, 50, 100):
        mine = {symbol for symbol in symbols if bucket("salt", symbol) < weight / 100}
        assert before <= mine
        assert len(mine) / len(symbols) == pytest.approx(weight / 100, abs=0.02)
        before = mine
