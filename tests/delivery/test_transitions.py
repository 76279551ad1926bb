from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import RolloutError
from delivery.plan import Plan, plan_of_steps
from delivery.transitions import UNSTOPPABLE, Change, Command, Phase, RolloutState, Rules, transition

ROLLOUT = Rules(plan_of_steps((5, 50, 100)), cool_down_s=60)
IDLE = RolloutState(champion="ppo/v1", version=1)
Move = tuple[Command, float, str | None]


def go(state: RolloutState, command: str, now: float = 0.0, challenger: str | None = "hrm/v1") -> RolloutState:
    return transition(state, Change(Command(command), now, challenger=challenger), ROLLOUT)


def promoted() -> RolloutState:
    state = go(IDLE, "start")
    for _ in range(4):
        state = go(state, "promote")
    return state


def test_a_rollout_walks_its_steps_and_ends_with_the_challenger_as_champion() -> None:
    state = go(IDLE, "start")
    seen = [(state.phase, state.weight)]
    for _ in range(4):
        state = go(state, "promote")
        seen.append((state.phase, state.weight))
    assert seen == [
        (Phase.SHADOW, 0),
        (Phase.CANARY, 5),
        (Phase.CANARY, 50),
        (Phase.CANARY, 100),
        (Phase.PROMOTED, 0),
    ]
    assert (state.champion, state.challenger, state.fallback) == ("hrm/v1", None, "ppo/v1")


@pytest.mark.parametrize("command", ["promote", "pause", "resume"])
@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.PROMOTED, Phase.ROLLED_BACK])
def test_commands_of_a_running_rollout_need_one(phase: Phase, command: str) -> None:
    with pytest.raises(RolloutError, match="allowed now") as error:
        go(replace(IDLE, phase=phase), command)
    assert error.value.code == "invalid_transition"


def test_a_running_rollout_cannot_be_started_over() -> None:
    with pytest.raises(RolloutError):
        go(go(IDLE, "start"), "start", challenger="hrm/v2")


def test_a_paused_rollout_keeps_its_weight_and_is_promoted_only_after_resume() -> None:
    state = go(go(go(IDLE, "start"), "promote"), "pause")
    assert (state.weight, state.paused) == (5, True)
    assert go(state, "pause") == state
    with pytest.raises(RolloutError, match="resume"):
        go(state, "promote")
    assert go(go(state, "resume"), "promote").weight == 50


@pytest.mark.parametrize("command", ["abort", "rollback"])
def test_an_abort_with_nothing_running_is_refused_and_leaves_the_stable_model_alone(command: str) -> None:
    with pytest.raises(RolloutError) as error:
        go(IDLE, command)
    assert error.value.code == "nothing_to_abort"


def test_a_rollback_after_promotion_brings_the_old_champion_back() -> None:
    state = go(promoted(), "rollback")
    assert (state.champion, state.rejected, state.latched) == ("ppo/v1", ("hrm/v1",), True)


def test_a_rolled_back_version_never_starts_again() -> None:
    state = go(go(IDLE, "start"), "abort", now=10)
    with pytest.raises(RolloutError) as error:
        go(state, "start", now=1e9)
    assert error.value.code == "version_rejected"


def test_every_rejected_version_stays_rejected_and_not_only_the_last() -> None:
    state = IDLE
    for number in (1, 2, 3):
        state = go(go(state, "start", now=number * 1e3, challenger=f"hrm/v{number}"), "abort", now=number * 1e3)
    assert state.rejected == ("hrm/v1", "hrm/v2", "hrm/v3")
    for number in (1, 2, 3):
        with pytest.raises(RolloutError) as error:
            go(state, "start", now=1e9, challenger=f"hrm/v{number}")
        assert error.value.code == "version_rejected"


@pytest.mark.parametrize("other", ["hrm/v9", "ppo/v1"])  # an unknown model, and the one before the promotion
def test_a_start_cannot_put_another_model_in_the_acting_champions_place(other: str) -> None:
    start = Change(Command.START, 0.0, champion=other, challenger="hrm/v2")
    with pytest.raises(RolloutError, match=r"hrm/v1 decides, not") as error:
        transition(promoted(), start, ROLLOUT)
    assert error.value.code == "champion_mismatch"
    assert transition(promoted(), replace(start, champion="hrm/v1"), ROLLOUT).champion == "hrm/v1"


def test_a_rejected_model_cannot_come_back_as_champion() -> None:
    state = go(promoted(), "rollback")
    with pytest.raises(RolloutError) as error:
        transition(state, Change(Command.START, 1e9, champion="hrm/v1", challenger="hrm/v2"), ROLLOUT)
    assert error.value.code == "champion_mismatch"


def test_a_service_without_a_champion_takes_its_first_from_a_start() -> None:
    state = transition(RolloutState(), Change(Command.START, 0.0, champion="a/v1", challenger="b/v1"), ROLLOUT)
    assert (state.phase, state.champion, state.challenger) == (Phase.SHADOW, "a/v1", "b/v1")


def test_another_version_starts_after_the_cool_down_and_not_before() -> None:
    state = go(go(IDLE, "start"), "abort", now=10)
    with pytest.raises(RolloutError) as error:
        go(state, "start", now=69, challenger="hrm/v2")
    assert error.value.code == "cool_down"
    assert go(state, "start", now=71, challenger="hrm/v2").phase is Phase.SHADOW


def test_a_start_needs_two_different_models() -> None:
    for challenger in (None, "ppo/v1"):
        with pytest.raises(RolloutError) as error:
            go(IDLE, "start", challenger=challenger)
        assert error.value.code == "start_incomplete"


def test_the_first_champion_is_installed_once() -> None:
    install = Change(Command.INSTALL, 0.0, champion="ppo/v1")
    state = transition(RolloutState(), install, ROLLOUT)
    assert (state.champion, state.version, state.epoch) == ("ppo/v1", 1, 1)
    again = transition(state, replace(install, champion="evil/v1"), ROLLOUT)
    assert again is state


def with_gates(*gates: dict[str, object], approvals: int = 0) -> Rules:
    """Shadow, one weight with these gates, promotion."""
    metric = {"name": "memory", "provider": {"service": "rss_gb"}, "failureCondition": "result > 1"}
    templates = {"errors": {"metrics": [metric]}} if any("analysis" in gate for gate in gates) else {}
    steps = [{"setWeight": 50}, *gates]
    told = {"steps": steps, "analysisTemplates": templates, "approvals": {"required": approvals}}
    return Rules(Plan.model_validate(told), cool_down_s=0)


def move(state: RolloutState, command: str, rules: Rules, actor: str = "starter", now: float = 0.0) -> RolloutState:
    return transition(state, Change(Command(command), now, actor=actor, challenger="hrm/v1"), rules)


ANALYSIS = {"analysis": {"templates": [{"name": "errors"}]}}


def test_a_stage_is_left_only_when_each_of_its_gates_is_passed() -> None:
    rules = with_gates({"pause": {"duration": "5m"}}, {"pause": {}}, ANALYSIS)
    state = move(move(IDLE, "start", rules), "promote", rules)
    for command, gate in (("advance", 1), ("promote", 2), ("advance", 3)):
        with pytest.raises(RolloutError):
            move(state, {"advance": "promote", "promote": "advance"}[command], rules)
        state = move(state, command, rules, now=float(gate))
        assert (state.gate, state.gate_at, state.stage_at, state.step) == (gate, gate, 0.0, 1)
    assert move(state, "promote", rules).phase is Phase.PROMOTED


def test_the_promotion_needs_two_keys_that_are_not_the_starters() -> None:
    rules = with_gates(approvals=2)
    state = move(move(IDLE, "start", rules), "promote", rules)  # weights need no approval
    for actor, missing in (("a", 2), ("a", 1), ("b", 1)):
        with pytest.raises(RolloutError, match=f"{missing} more approval") as error:
            move(state, "promote", rules)
        assert error.value.code == "approvals_missing"
        state = move(state, "approve", rules, actor=actor)
    with pytest.raises(RolloutError) as refused:
        move(state, "approve", rules, actor="starter")
    assert refused.value.code == "self_approval"
    assert move(state, "promote", rules).champion == "hrm/v1"


def test_a_rollback_needs_one_key_and_names_its_trigger() -> None:
    rules = with_gates(ANALYSIS, approvals=2)
    state = move(move(IDLE, "start", rules), "promote", rules)
    state = transition(state, Change(Command.ROLLBACK, 5.0, trigger="drawdown_exceeded"), rules)
    assert (state.latched, state.trigger, state.rolled_back_at, state.approved_by) == (
        True,
        "drawdown_exceeded",
        5.0,
        (),
    )


def test_approvals_and_gates_of_one_attempt_mean_nothing_to_the_next() -> None:
    rules = with_gates(approvals=1)
    state = move(move(move(IDLE, "start", rules), "approve", rules, "a"), "abort", rules)
    state = transition(state, Change(Command.START, 9.0, actor="b", challenger="hrm/v2"), rules)
    assert (state.approved_by, state.gate, state.started_by, state.attempt) == ((), 0, "b", state.version)


moves = st.tuples(st.sampled_from(list(Command)), st.floats(0, 100), st.sampled_from(["a/v1", "b/v1", "c/v1", None]))


@given(st.lists(moves, max_size=25))
def test_whatever_happens_the_invariants_hold_and_an_abort_wins(history: list[Move]) -> None:
    state, now = IDLE, 0.0
    for command, wait_s, challenger in history:
        now += wait_s
        before = state
        try:
            state = go(state, command, now, challenger)
        except RolloutError:
            assert command not in UNSTOPPABLE or before.phase is Phase.IDLE, "an abort was refused"
            continue
        assert state.champion is not None
        assert state.version == before.version + (state is not before)
        assert (state.weight > 0) == (state.phase is Phase.CANARY)
        assert (state.challenger is not None) == (state.phase in (Phase.SHADOW, Phase.CANARY))
        decides = (before.champion, before.weight) != (state.champion, state.weight)
        assert state.epoch >= before.epoch + decides
        assert set(state.rejected) >= set(before.rejected)
        assert state.challenger not in state.rejected
        if command in (Command.ABORT, Command.ROLLBACK):
            assert state.latched
            assert go(state, command, now) is state


def test_a_verdict_on_one_attempt_takes_back_no_other() -> None:
    plan = Plan.model_validate({"steps": [{"pause": {}}, {"setWeight": 10}]})
    rules = Rules(plan, 0.0)
    idle = RolloutState(champion="ppo/v1", version=1)
    state = transition(idle, Change(Command.START, 0.0, challenger="hrm/v1"), rules)
    late = Change(Command.ROLLBACK, 1.0, trigger="error_rate_exceeded", attempt=state.attempt - 1)
    assert transition(state, late, rules) == state
    assert transition(state, replace(late, attempt=state.attempt), rules).latched
    assert transition(state, replace(late, attempt=None), rules).latched


def test_what_a_rollback_left_is_handed_over_by_its_own_plan_until_the_next_attempt_has_a_weight() -> None:
    first = Rules(plan_of_steps((5, 50)), cool_down_s=0)
    second = Rules(plan_of_steps((10, 100)), cool_down_s=0)
    state = transition(IDLE, Change(Command.START, 0.0, challenger="hrm/v1"), first)
    state = transition(state, Change(Command.PROMOTE, 1.0), first)
    state = transition(state, Change(Command.ROLLBACK, 2.0, trigger="drawdown_exceeded"), first)
    again = transition(state, Change(Command.START, 3.0, challenger="hrm/v2"), second)
    assert (again.taken_back, again.trigger, again.handover_sha256) == (
        "challenger",
        "drawdown_exceeded",
        first.plan.sha256,
    )
    assert again.plan_sha256 == second.plan.sha256
    stepped = transition(again, Change(Command.PROMOTE, 4.0), second)
    assert stepped.taken_back is None
    ended = transition(stepped, Change(Command.ABORT, 5.0), second)
    assert (ended.taken_back, ended.handover_sha256) == ("challenger", second.plan.sha256)
