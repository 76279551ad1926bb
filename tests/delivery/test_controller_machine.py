"""The real controller, store and lease against a model, in any order of commands, readings, kills and time."""

import tempfile
from pathlib import Path

import pytest
from desk import LEVEL, Desk
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from rollout_model import DEADLINE_S, PAUSE_S, Model

from core.errors import RolloutError
from delivery.plan import Plan
from delivery.store import verify_chain
from delivery.transitions import Phase

LEVELS = LEVEL | {"successCondition": "result <= 1"}
PLAN = Plan.model_validate(
    {
        "steps": [
            {"analysis": {"templates": [{"name": "gate"}]}},
            {"setWeight": 10},
            {"pause": {"duration": PAUSE_S}},
            {"setWeight": 50},
            {"pause": {}},
        ],
        "analysisTemplates": {
            "gate": {"metrics": [LEVELS | {"name": "at_the_gate"}]},
            "watch": {"metrics": [LEVELS | {"name": "watched", "count": 0, "inconclusiveLimit": -1}]},
        },
        "backgroundAnalysis": {"templates": [{"name": "watch"}], "startingStep": 1},
        "approvals": {"required": 1},
        "progressDeadlineSeconds": DEADLINE_S,
    }
)


class Rollouts(RuleBasedStateMachine):
    @initialize(looks=st.integers(0, 6))
    def begin(self, looks: int) -> None:
        """Somewhere on the way: so many looks after a start, at which all was well."""
        self.folder = tempfile.TemporaryDirectory()
        self.desk, self.model = Desk(Path(self.folder.name)), Model()
        self.attempts, self.old = 0, "ppo/v1"
        self.weights: list[int] = []
        self.start()
        for _ in range(looks):
            self.look("good", PAUSE_S)

    def ask(self, command: str, **fields: object) -> bool:
        try:
            self.desk.ask(command, actor=fields.pop("actor", "person"), plan=PLAN, **fields)
        except RolloutError:
            return False
        return True

    @rule()
    def start(self) -> None:
        self.attempts += 1
        name = f"hrm/v{self.attempts}"
        self.old = self.model.champion
        assert self.ask("start", challenger=name) == self.model.start(name, self.desk.now)
        self.weights.clear()

    @rule()
    def start_what_was_rejected(self) -> None:
        for name in self.model.rejected:
            assert not self.ask("start", challenger=name)

    @rule(
        reading=st.sampled_from(["good", "bad", "nothing", "error"]),
        seconds=st.sampled_from([1.0, 7.0, PAUSE_S, DEADLINE_S]),
    )
    def look(self, reading: str, seconds: float) -> None:
        self.desk.look(reading, seconds)
        self.model.tick(self.desk.now, reading, self.old)

    @rule(looks=st.integers(1, 5))
    def all_is_well(self, looks: int) -> None:
        for _ in range(looks):
            self.look("good", PAUSE_S)

    @rule(reading=st.sampled_from(["nothing", "error"]), looks=st.sampled_from([1, 1, 5]))
    def nothing_is_known(self, reading: str, looks: int) -> None:
        for _ in range(looks):
            self.look(reading, 1.0)

    @rule()
    def promote(self) -> None:
        assert self.ask("promote") == self.model.promote(self.desk.now)

    @rule(actor=st.sampled_from(["person", "somebody else"]))
    def approve(self, actor: str) -> None:
        allowed = self.model.active and actor != "person"
        assert self.ask("approve", actor=actor) == allowed
        self.model.approved |= allowed

    @rule()
    def pause(self) -> None:
        assert self.ask("pause") == self.model.active
        self.model.paused |= self.model.active

    @rule()
    def resume(self) -> None:
        assert self.ask("resume") == self.model.active
        if self.model.active:
            self.model.resume(self.desk.now)

    @rule(command=st.sampled_from(["abort", "rollback"]))
    def abort(self, command: str) -> None:
        something = self.model.phase != "idle"
        assert self.ask(command) == something
        if something and self.model.phase != "rolled_back":
            self.model.roll_back(self.old)

    @rule()
    def kill_the_controller(self) -> None:
        self.desk.lease.release()  # what running out does, without the wait; test_lease.py waits
        self.desk.appoint()

    @invariant()
    def it_is_what_the_model_says(self) -> None:
        state, model = self.desk.store.read(), self.model
        assert (str(state.phase), state.weight, state.champion) == (model.phase, model.weight, model.champion), state
        assert (state.challenger, state.paused) == (model.challenger, model.paused), state
        assert set(state.rejected) == model.rejected
        if model.active:
            assert state.gate == int(model.passed), state

    @invariant()
    def the_log_is_whole(self) -> None:
        events = self.desk.store.events(limit=100_000)
        assert len(events) == self.desk.store.read().version
        assert verify_chain(events)

    @invariant()
    def the_weight_only_grows_until_it_is_over(self) -> None:
        state = self.desk.store.read()
        if state.phase is Phase.CANARY:
            self.weights.append(state.weight)
            assert self.weights == sorted(self.weights)

    def teardown(self) -> None:
        if hasattr(self, "desk"):
            self.desk.store.close()
            self.folder.cleanup()


def stories(count: int) -> None:
    """`count` of them, twelve rules each."""
    chosen = settings(
        max_examples=count, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(Rollouts, settings=chosen)


def test_any_story_ends_as_the_model_says() -> None:
    stories(60)


@pytest.mark.slow
def test_any_of_very_many_stories_ends_as_the_model_says() -> None:
    stories(3000)
