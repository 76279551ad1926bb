"""Rows bound to fixed addresses, on the device there is: here the CPU, whose runs are bound but not captured."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import RULE, publish_hrm

from core.errors import ModelError
from core.settings import Settings
from flows.drill_models import SCHEMA
from serving.device import DeviceSlots, ladder
from serving.graph import Graph
from serving.reasoning import UNLIMITED, Reasoning
from serving.slots import HostSlots
from serving.store import load_version

W, F, A = SCHEMA.window, len(SCHEMA.bar_features), len(SCHEMA.account_features)


@pytest.fixture
def both(settings: Settings) -> tuple[Reasoning, Reasoning, Graph]:
    publish_hrm(settings.paths.state_dir / "models", "hrm/device")
    model = load_version(settings.paths.state_dir / "models", "hrm/device", size_limit_mb=10)
    graph = Graph(model, settings.serving)
    rows = 7
    return (
        Reasoning(model.manifest, HostSlots(graph, model.manifest, rows)),
        Reasoning(model.manifest, DeviceSlots(graph, model.manifest, rows)),
        graph,
    )


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1]), (2, [1, 2]), (7, [1, 2, 4, 7]), (8, [1, 2, 4, 8])])
def test_the_ladder_of_batch_sizes_ends_with_all_rows(rows: int, sizes: list[int]) -> None:
    assert ladder(rows) == sizes


def test_rows_that_come_and_go_decide_the_same_wherever_they_live(both: tuple[Reasoning, Reasoning, Graph]) -> None:
    host, device, _ = both
    random = np.random.default_rng(3)
    for _ in range(40):
        arriving = int(random.integers(0, min(3, host.free) + 1))
        if arriving:
            feeds = {
                "bars": random.normal(size=(arriving, W, F)).astype(np.float32),
                "account": random.uniform(0, RULE.max_segments, size=(arriving, A)).astype(np.float32),
            }
            rest = (random.random(arriving), random.integers(-1, 2, arriving), np.full(arriving, UNLIMITED))
            np.testing.assert_array_equal(host.join(feeds, *rest), device.join(feeds, *rest))
        if not len(host.here):
            continue
        ours, theirs = host.step(), device.step()
        np.testing.assert_array_equal(ours.halted, theirs.halted)
        np.testing.assert_array_equal(ours.broken, theirs.broken)
        for name in ("action", "quantity", "probabilities", "value", "segments", "stable"):
            np.testing.assert_array_equal(getattr(ours.decisions, name), getattr(theirs.decisions, name))
        for reasoning, step in ((host, ours), (device, theirs)):
            reasoning.leave(step.slots[step.halted])


def test_a_stopped_model_does_not_run_on_the_device_either(both: tuple[Reasoning, Reasoning, Graph]) -> None:
    _, device, graph = both
    one = {"bars": np.zeros((1, W, F), np.float32), "account": np.zeros((1, A), np.float32)}
    device.join(one, np.zeros(1), np.zeros(1, np.int64), np.full(1, UNLIMITED))
    graph.stop()
    with pytest.raises(ModelError, match="stopped"):
        device.step()
