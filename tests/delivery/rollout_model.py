"""What a rollout must do, in few lines and without the controller's code: the oracle of test_controller_machine.py.

It knows one plan: shadow with an analysis, 10 % for a minute, 50 % until somebody promotes, and one approval; from the
first weight on a metric in the background, one failure of which ends it.
"""

from dataclasses import dataclass, field

PAUSE_S, DEADLINE_S = 60.0, 3600.0
WEIGHTS = (0, 10, 50)


@dataclass
class Model:
    phase: str = "idle"
    step: int = 0
    passed: bool = False  # the gate of this stage
    paused: bool = False
    approved: bool = False
    champion: str = "ppo/v1"
    challenger: str | None = None
    rejected: set[str] = field(default_factory=set)
    stage_at: float = 0.0
    gate: list[str] = field(default_factory=list)  # what was measured at the gate of the shadow
    watched: list[str] = field(default_factory=list)

    @property
    def weight(self) -> int:
        return WEIGHTS[self.step] if self.phase == "canary" else 0

    @property
    def active(self) -> bool:
        return self.phase in ("shadow", "canary")

    def start(self, challenger: str, now: float) -> bool:
        if self.active or challenger in (*self.rejected, self.champion):
            return False
        self.__init__("shadow", champion=self.champion, challenger=challenger, rejected=self.rejected, stage_at=now)
        return True

    def roll_back(self, old: str) -> None:
        lost = self.champion if self.phase == "promoted" else self.challenger
        self.champion = old if self.phase == "promoted" else self.champion
        self.rejected |= {lost} if lost else set()
        self.phase, self.challenger, self.paused = "rolled_back", None, False

    def promote(self, now: float) -> bool:
        """By a person, or by the controller where the gate is passed."""
        waits_for_a_person = self.step == 2
        if not self.active or self.paused or not (self.passed or waits_for_a_person):
            return False
        if self.step == 2 and not self.approved:
            return False
        self.step, self.passed, self.stage_at = self.step + 1, False, now
        self.phase = "canary"
        if self.step == 3:
            self.phase, self.champion, self.challenger = "promoted", self.challenger or "", None
        return True

    def resume(self, now: float) -> None:
        if self.paused:
            self.paused, self.stage_at, self.gate, self.watched = False, now, [], []

    def tick(self, now: float, reading: str, old: str) -> None:
        """One look of the controller, all metrics of which read the same: good, bad, nothing or error."""
        if not self.active:
            return
        if self.step >= 1:
            self.watched.append(reading)
        elif not self.passed and not self._ended(self.gate):
            self.gate.append(reading)
        condemned = "bad" in (*self.watched, *self.gate) or self._errors(self.watched)
        late = now - self.stage_at > DEADLINE_S and not self._gave_up()
        if condemned or late:
            self.roll_back(old)
        elif self._gave_up():
            self.paused = True
        elif not self.paused:
            self._forward(now)

    def _gave_up(self) -> bool:
        """In the shadow nobody is hurt by what cannot be judged: it waits for a person."""
        return self.step == 0 and not self.passed and (self.gate[-1:] == ["nothing"] or self._errors(self.gate))

    def _forward(self, now: float) -> None:
        if self.step == 0 and not self.passed:
            self.passed = self.gate[-1:] == ["good"]
        elif self.step == 1 and not self.passed:
            self.passed = now - self.stage_at >= PAUSE_S
        elif self.passed and (self.step == 0 or self.watched[-1:] in (["good"], ["nothing"])):
            self.promote(now)

    @staticmethod
    def _errors(taken: list[str]) -> bool:
        return taken[-5:] == ["error"] * 5

    def _ended(self, taken: list[str]) -> bool:
        return taken[-1:] in (["good"], ["bad"], ["nothing"]) or self._errors(taken)
