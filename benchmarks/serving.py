"""The inference service under load, over HTTP on loopback, beside what others make of the same engine.

load        closed loop, keep-alive clients, depths 1, 2 and 3 in equal parts: ours in both forms, LitServe, Ray Serve
few         the same with 20 clients: the tail
full_depth  one client, every segment there is; on a CPU the `seed` preset, the service on one core of its own
mixed       half the questions need one segment and half all of them, at a rate both can bear: how long the shallow wait
            here and in whole-request batching
start       from the start of the process to readiness, and the memory of a service in use
soak        hours of mixed load and changes (benchmarks/serving_soak.py)

Servers and the load generator are processes of their own. Contenders take turns, medians of the turns are compared;
answers are held against those of the engine itself (`agrees_ratio`).
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from benchmarks.machine import described
from benchmarks.serving_goals import judged
from benchmarks.serving_load import Load, measured
from benchmarks.serving_model import Questions, publish_model, questions
from benchmarks.serving_peers import PEER_NAMES, Contender, tuned
from benchmarks.serving_soak import soak
from benchmarks.serving_start import start
from benchmarks.serving_targets import Model, Target, echo, our_service, whole_requests
from core.errors import ConfigError
from core.manifest import Storage
from core.settings import Settings, load_settings
from serving.engine import Engine, load_engine
from serving.graph import GPU_PROVIDERS, working_providers

PARTS = ("load", "few", "full_depth", "mixed", "start")
RUNS = 3
FEW_CLIENTS = 20
QUESTIONS = 96
ECHO_S = 2.0
SHALLOW = (1, 2, 3)  # averages two
MIXED_RATE_RATIO = 0.7  # of what the slower of the two can
PINNED_PRESET = "seed"  # of full_depth on a CPU: NFR1.1 is stated for it
START_PRESETS = ("default", "paper_27m")


@dataclass(frozen=True)
class Plan:
    """What to measure: `parts` of PARTS, `storage` None for the exact format that fits, `peers` beside ours."""

    clients: int = 100
    seconds: float = 20.0
    parts: tuple[str, ...] = PARTS
    storage: Storage | None = None
    peers: bool = False
    soak_s: float = 0.0
    workers: int = 1


def plan(*, only: str | None, storage: str | None, **numbers: Any) -> Plan:
    """A Plan from a command line's words. Raises ConfigError for a part or a format that there is not."""
    parts = tuple(name.strip() for name in only.split(",")) if only else PARTS
    for word, known in ((set(parts), PARTS), ({storage} - {None}, get_args(Storage))):
        unknown = sorted(str(each) for each in word - set(known))
        if unknown:
            raise ConfigError(f"{', '.join(unknown)}: unknown; choose from {', '.join(known)}", code="usage")
    return Plan(parts=parts, storage=cast(Storage | None, storage), **numbers)


def run(settings: Settings, plan: Plan) -> dict[str, Any]:
    """Every part that `plan` names, and `goals`: figure, limit and whether it was reached."""
    with tempfile.TemporaryDirectory(prefix="hrm-bench-") as folder:
        bench = _Bench(settings, plan, Path(folder))
        found: dict[str, Any] = {part: getattr(bench, part)() for part in PARTS if part in plan.parts}
        if plan.soak_s:
            found["soak"] = soak(bench.model, bench.asked(SHALLOW), plan.soak_s)
        facts = {"preset": settings.preset, "storage": bench.model.manifest.storage, "provider": bench.engine.provider}
    goals = judged(found, settings.preset, gpu=bench.gpu)
    return described(RUNS) | facts | {"clients": plan.clients} | flat(found) | found | {"goals": goals}


def flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of `load`, and p50 of the shallow in `mixed`, ms; None for a part that was not run.

    `errors`: how many, in all turns. `peers`: those that were measured, by name.
    """
    load, mixed = found.get("load", {}), found.get("mixed", {})
    return _headline(load.get("ours")) | {
        "peers": {name: _headline(load[name]) for name in PEER_NAMES if name in load} or None,
        "ratio_vs_best_peer": load.get("ratio_to_best_peer"),
        "shallow_p50_ms": mixed["ours"]["by_depth_ms"]["1"]["p50"] if mixed else None,
        "shallow_p50_whole_request_ms": mixed["whole_requests"]["by_depth_ms"]["1"]["p50"] if mixed else None,
    }


def _headline(found: Mapping[str, Any] | None) -> dict[str, Any]:
    if found is None:
        return dict.fromkeys(("decisions_per_s", "mean_ms", "p50_ms", "p99_ms", "errors"))
    latency_ms = {f"{name}_ms": found["latency_ms"].get(name) for name in ("mean", "p50", "p99")}  # none: no answer
    return {"decisions_per_s": found["decisions_per_s"], **latency_ms, "errors": sum(found["errors"].values())}


class _Bench:
    """The parts, and the models they share: each preset is exported once."""

    def __init__(self, settings: Settings, plan: Plan, folder: Path) -> None:
        self._plan, self._folder, self._peers_in = plan, folder, settings.paths.state_dir
        self._models: dict[str, Model] = {}
        self.gpu = bool(GPU_PROVIDERS & set(working_providers(settings.serving.providers)[:1]))
        self.preset = settings.preset
        self._given = settings
        self.model = self.model_of(settings.preset)
        self.engine: Engine = load_engine(self.model.settings, self.model.id)

    def model_of(self, preset: str) -> Model:
        if preset not in self._models:
            settings = self._given if preset == self._given.preset else load_settings(preset=preset)
            state_dir = self._folder / preset
            serving = settings.serving.model_copy(update={"workers": self._plan.workers})
            paths = settings.paths.model_copy(update={"state_dir": state_dir})
            rollout = settings.rollout.model_copy(update={"database_url_env": None})
            settings = settings.model_copy(update={"paths": paths, "serving": serving, "rollout": rollout})
            manifest = publish_model(settings, state_dir / "models", self._plan.storage)
            self._models[preset] = Model(settings, manifest)
        return self._models[preset]

    def asked(self, depths: tuple[int, ...]) -> Questions:
        return questions(self.model.manifest, depths, QUESTIONS)

    def load(self) -> dict[str, Any]:
        asked = self.asked(SHALLOW)
        contenders: dict[str, Contender] = {
            "ours": partial(our_service, self.model, asked),
            "ours_json": partial(our_service, self.model, asked, "json"),
        }
        tunings: dict[str, Any] = {}
        if self._plan.peers:
            for name in PEER_NAMES:
                tunings[name], best = tuned(
                    name, self.model, asked, clients=self._plan.clients, state_dir=self._peers_in
                )
                if best is not None:
                    contenders[name] = best
        found = self._in_turns(contenders, asked, self._plan.clients)
        rivals = [found[name]["decisions_per_s"] for name in PEER_NAMES if name in found]
        with echo(asked) as target:
            idle = measured(Load(target.port, target.requests, clients=self._plan.clients, seconds=ECHO_S))
        return {
            "clients": self._plan.clients,
            "generator": {"requests_per_s": idle["decisions_per_s"], "client_us": idle["client_us"]},
            **found,
            "tunings": tunings,
            "ratio_to_best_peer": found["ours"]["decisions_per_s"] / max(rivals) if rivals else None,
        }

    def few(self) -> dict[str, Any]:
        asked = self.asked(SHALLOW)
        found = self._in_turns({"ours": partial(our_service, self.model, asked)}, asked, FEW_CLIENTS)
        return {"clients": FEW_CLIENTS, **found}

    def full_depth(self) -> dict[str, Any]:
        model = self.model if self.gpu else self.model_of(PINNED_PRESET)
        rule = model.manifest.halting
        assert rule is not None  # noqa: S101 - an HRM has one; for the type checker
        asked = questions(model.manifest, (rule.max_segments,), QUESTIONS)
        first, *others = sorted(os.sched_getaffinity(0))
        pinned = not self.gpu and bool(others)

        @contextmanager
        def service() -> Iterator[Target]:
            here, elsewhere = ({first}, set(others)) if pinned else (None, None)
            with _on_cores(here), our_service(model, asked) as target, _on_cores(elsewhere):
                yield target

        found = _summary([_loaded(service, asked, clients=1, seconds=self._plan.seconds) for _ in range(RUNS)])
        return {"preset": model.settings.preset, "pinned": pinned, "segments": rule.max_segments, "ours": found}

    def mixed(self) -> dict[str, Any]:
        rule = self.model.manifest.halting
        assert rule is not None  # noqa: S101 - as above
        asked = self.asked((1, rule.max_segments))
        contenders: dict[str, Contender] = {
            "ours": partial(our_service, self.model, asked),
            "whole_requests": partial(whole_requests, self.model, asked),
        }
        able = self._in_turns(contenders, asked, self._plan.clients, runs=1)
        rate = MIXED_RATE_RATIO * min(each["decisions_per_s"] for each in able.values())
        found = self._in_turns(contenders, asked, self._plan.clients, rate_per_s=rate)
        shallow = {name: each["by_depth_ms"]["1"]["p50"] for name, each in found.items()}
        return {
            "rate_per_s": rate,
            **found,
            "saturated": {name: each["by_depth_ms"]["1"]["p50"] for name, each in able.items()},
            "shallow_p50_ratio": shallow["ours"] / shallow["whole_requests"],
        }

    def start(self) -> dict[str, Any]:
        presets = dict.fromkeys((self.preset, *START_PRESETS))
        return {preset: self._start(self.model_of(preset)) for preset in presets}

    @staticmethod
    def _start(model: Model) -> dict[str, Any]:
        return start(model, questions(model.manifest, SHALLOW, QUESTIONS), RUNS)

    def _in_turns(
        self, contenders: dict[str, Contender], asked: Questions, clients: int, *, runs: int = RUNS, **load: Any
    ) -> dict[str, dict[str, Any]]:
        """Each contender's medians; one turn of all before the next turn of any."""
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for _ in range(runs):
            for name, contender in contenders.items():
                turns[name].append(_loaded(contender, asked, clients=clients, seconds=self._plan.seconds, **load))
        expected = self._choices(asked)
        return {name: _summary(each) | {"agrees_ratio": _agreement(each, expected)} for name, each in turns.items()}

    def _choices(self, asked: Questions) -> dict[str, list[int]]:
        """What the engine itself answers, by number of the question: action and segments."""
        made = self.engine.decide(asked.bars, asked.account, asked.complexity, asked.position)
        pairs = zip(made.action.tolist(), made.segments.tolist(), strict=True)
        return {str(which): list(pair) for which, pair in enumerate(pairs)}


def _loaded(contender: Contender, asked: Questions, **load: Any) -> dict[str, Any]:
    with contender() as target:
        return measured(Load(target.port, target.requests, pid=target.pid, **load))


def _summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of numbers over turns, sums of counts, at every depth of the dictionaries."""
    kept = ("decisions_per_s", "latency_ms", "by_depth_ms", "mean_depth", "server_cores", "server_us", "client_us")
    medians = {name: _median([turn[name] for turn in turns]) for name in kept}
    errors: dict[str, int] = {}
    for turn in turns:
        for kind, count in turn["errors"].items():
            errors[kind] = errors.get(kind, 0) + count
    decisions = sum(turn["decisions"] for turn in turns)
    failed = sum(errors.values())
    return medians | {
        "decisions": decisions,
        "runs_decisions_per_s": [turn["decisions_per_s"] for turn in turns],
        "errors": errors,
        "error_ratio": failed / max(1, failed + decisions),
    }


def _median(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        shared = set.intersection(*(set(value) for value in values))
        return {key: _median([value[key] for value in values]) for key in values[0] if key in shared}
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _agreement(turns: list[dict[str, Any]], expected: dict[str, list[int]]) -> float | None:
    """Share of questions that were answered with the engine's own action and depth."""
    answers = [expected[which] == choice for turn in turns for which, choice in turn["choices"].items()]
    return sum(answers) / len(answers) if answers else None


@contextmanager
def _on_cores(cores: set[int] | None) -> Iterator[None]:
    """What is started meanwhile runs on `cores`, this thread too; None: wherever it likes."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def table(found: dict[str, Any]) -> None:
    """Figure, goal and whether it was reached, for a person; then everything else that was measured."""
    from rich.console import Console
    from rich.pretty import Pretty
    from rich.table import Table

    rows = Table("figure", "measured", "goal", "reached", box=None)
    for goal in found["goals"]:
        value = "not measured" if goal["value"] is None else f"{goal['value']:.4g}"
        rows.add_row(goal["figure"], value, goal["goal"], "yes" if goal["reached"] else "NO")
    console = Console()
    console.print(rows, Pretty({name: value for name, value in found.items() if name != "goals"}))
