"""An imported agent does what stable-baselines3's deterministic predict does, as the serving engine runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from sb3_archives import ACCOUNT, BARS, SCHEMA, box, trained, trained_normalized
from sb3_contrib import MaskablePPO
from torch import nn

from baselines.sb3.importing import Options, imported, publish_imported, read_source
from core.actions import TARGET_OF, Action, legal_actions
from core.settings import load_settings
from serving.engine import Decisions, Engine
from serving.store import load_version

ROWS = 300
QUANTITY_MAX = 1000.0
Observed = tuple[np.ndarray, np.ndarray, np.ndarray]  # bars, account, position
FLAT = box(BARS[0] * BARS[1] + ACCOUNT[0])
DICT = spaces.Dict({"bars": box(*BARS), "account": box(*ACCOUNT)})
SIZED = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 1.0], np.float32))


def observed(scale: float = 1.0) -> Observed:
    rng = np.random.default_rng(0)
    bars = scale * rng.standard_normal((ROWS, *BARS), dtype=np.float32)
    account = scale * rng.standard_normal((ROWS, *ACCOUNT), dtype=np.float32)
    position = rng.integers(-1, 2, ROWS)
    account[:, SCHEMA.account_features.index("position")] = position
    return bars, account, position


def as_theirs(seen: Observed, space: spaces.Space) -> Any:
    bars, account, _ = seen
    if isinstance(space, spaces.Dict):
        return {"bars": bars, "account": account}
    return bars if space.shape == BARS else np.concatenate([bars.reshape(ROWS, -1), account], axis=1)


def import_agent(model: Any, folder: Path, normalization: Path | None = None, **options: Any) -> Engine:
    """Saved, read without unpickling, published, loaded by the engine."""
    model.save(folder / "agent.zip")
    source = read_source(folder / "agent.zip", normalization)
    policy, schema = imported(source, SCHEMA, Options(**options), quantity_max=QUANTITY_MAX)
    store = folder / "models"
    publish_imported(policy, schema, store=store, name="ppo", version="v1", sha256=source.sha256)
    return Engine(load_version(store, "ppo/v1", size_limit_mb=100), load_settings(environ={}).serving)


def decided(engine: Engine, seen: Observed) -> Decisions:
    bars, account, position = seen
    return engine.decide(bars, account, np.zeros(ROWS, np.float32), position)


def targets(decisions: Decisions, position: np.ndarray) -> np.ndarray:
    return TARGET_OF[position + 1, decisions.action]


def meant(action: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Positions after actions in the seed's order; an illegal one leaves the position."""
    legal = legal_actions(position)[np.arange(len(position)), action]
    return np.where(legal, TARGET_OF[position + 1, action], position)


@pytest.mark.parametrize("space", [box(*BARS), FLAT, DICT], ids=["bars", "flat", "dict"])
def test_five_actions_in_the_seeds_order(space: spaces.Space, tmp_path: Path) -> None:
    model, seen = trained(space, spaces.Discrete(5)), observed()
    theirs, _ = model.predict(as_theirs(seen, space), deterministic=True)
    assert len(set(theirs)) > 2
    decisions = decided(import_agent(model, tmp_path), seen)
    np.testing.assert_array_equal(targets(decisions, seen[2]), meant(theirs, seen[2]))
    assert (decisions.quantity == 1.0).all()


def test_three_targets_short_flat_long(tmp_path: Path) -> None:
    model, seen = trained(FLAT, spaces.Discrete(3)), observed()
    theirs, _ = model.predict(as_theirs(seen, FLAT), deterministic=True)
    assert len(set(theirs)) == 3
    decisions = decided(import_agent(model, tmp_path, quantities=(65.0,)), seen)
    np.testing.assert_array_equal(targets(decisions, seen[2]), theirs - 1)
    np.testing.assert_allclose(decisions.quantity, 65.0, rtol=1e-6)


def test_three_actions_named_sell_hold_buy_keep_the_position_on_hold(tmp_path: Path) -> None:
    model, seen = trained(FLAT, spaces.Discrete(3)), observed()
    theirs, _ = model.predict(as_theirs(seen, FLAT), deterministic=True)
    decisions = decided(import_agent(model, tmp_path, actions=("sell", "hold", "buy")), seen)
    expected = np.select([theirs == 0, theirs == 1], [-1, seen[2]], 1)
    np.testing.assert_array_equal(targets(decisions, seen[2]), expected)


@pytest.mark.parametrize("quantities", [(), (1.0, 5.0, 10.0, 50.0, 100.0, 200.0, 1000.0)], ids=["log-spaced", "given"])
def test_an_action_and_a_bin_of_quantities(quantities: tuple[float, ...], tmp_path: Path) -> None:
    model, seen = trained(FLAT, spaces.MultiDiscrete([5, 7])), observed()
    theirs, _ = model.predict(as_theirs(seen, FLAT), deterministic=True)
    assert len(set(theirs[:, 1])) > 2
    decisions = decided(import_agent(model, tmp_path, quantities=quantities), seen)
    np.testing.assert_array_equal(targets(decisions, seen[2]), meant(theirs[:, 0], seen[2]))
    units = np.array(quantities or 1000.0 ** (np.arange(7) / 6))
    np.testing.assert_allclose(decisions.quantity, units[theirs[:, 1]], rtol=1e-5)


def test_a_target_position_is_flat_within_the_dead_zone(tmp_path: Path) -> None:
    model, seen = trained(FLAT, spaces.Box(-1.0, 1.0, (1,), np.float32), learning_rate=0.1), observed()
    theirs, _ = model.predict(as_theirs(seen, FLAT), deterministic=True)
    expected = np.where(np.abs(theirs[:, 0]) > 0.2, np.sign(theirs[:, 0]), 0)
    assert len(set(expected)) == 3
    decisions = decided(import_agent(model, tmp_path, dead_zone=0.2), seen)
    np.testing.assert_array_equal(targets(decisions, seen[2]), expected)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_a_direction_and_a_share_of_the_largest_quantity(low: float, tmp_path: Path) -> None:
    space = spaces.Box(np.array([-1.0, low], np.float32), np.array([1.0, 1.0], np.float32))
    model, seen = trained(FLAT, space), observed()
    theirs, _ = model.predict(as_theirs(seen, FLAT), deterministic=True)
    decisions = decided(import_agent(model, tmp_path), seen)
    expected = np.where(np.abs(theirs[:, 0]) > 0.33, np.sign(theirs[:, 0]), 0)
    np.testing.assert_array_equal(targets(decisions, seen[2]), expected)
    share = (theirs[:, 1] - low) / (1.0 - low)
    assert 0.0 < share.min() + share.max() < 2.0
    np.testing.assert_allclose(decisions.quantity, np.maximum(1.0, QUANTITY_MAX * share), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("space", [box(*BARS), FLAT, DICT], ids=["bars", "flat", "dict"])
def test_normalization_is_part_of_the_model(space: spaces.Space, tmp_path: Path) -> None:
    model, env = trained_normalized(space, spaces.Discrete(3))
    env.save(str(tmp_path / "vecnormalize.pkl"))
    seen = observed(scale=50.0)
    given = env.normalize_obs(as_theirs(seen, space))
    theirs, _ = model.predict(given, deterministic=True)
    without, _ = model.predict(as_theirs(seen, space), deterministic=True)
    assert (theirs != without).any()
    decisions = decided(import_agent(model, tmp_path, tmp_path / "vecnormalize.pkl"), seen)
    np.testing.assert_array_equal(targets(decisions, seen[2]), theirs - 1)


def test_values_and_logits_are_those_of_the_network(tmp_path: Path) -> None:
    model, seen = trained(FLAT, spaces.Discrete(5)), observed()
    tensor, _ = model.policy.obs_to_tensor(as_theirs(seen, FLAT))
    decisions = decided(import_agent(model, tmp_path), seen)
    np.testing.assert_allclose(decisions.value, model.policy.predict_values(tensor).detach().numpy()[:, 0], atol=1e-4)


def test_a_maskable_ppo_decides_among_the_legal_actions_only(tmp_path: Path) -> None:
    model, seen = trained(FLAT, spaces.Discrete(5), MaskablePPO), observed()
    masks = legal_actions(seen[2])
    theirs, _ = model.predict(as_theirs(seen, FLAT), deterministic=True, action_masks=masks)
    unmasked, _ = model.predict(as_theirs(seen, FLAT), deterministic=True)
    assert (theirs != unmasked).any()
    decisions = decided(import_agent(model, tmp_path), seen)
    np.testing.assert_array_equal(decisions.action, theirs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"net_arch": []},
        {"net_arch": {"pi": [8], "vf": [16, 8, 4]}, "activation_fn": nn.ReLU},
        {"net_arch": [16, 16, 16], "activation_fn": nn.ELU},
        {"activation_fn": nn.LeakyReLU, "ortho_init": False},
    ],
    ids=["linear", "relu", "elu", "leaky"],
)
def test_networks_of_any_depth_and_stated_activation(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model, seen = trained(FLAT, spaces.Discrete(3), policy_kwargs=kwargs), observed()
    theirs, _ = model.predict(as_theirs(seen, FLAT), deterministic=True)
    np.testing.assert_array_equal(targets(decided(import_agent(model, tmp_path), seen), seen[2]), theirs - 1)


def test_an_observation_of_other_features_is_served_as_a_generic_one(tmp_path: Path) -> None:
    model = trained(box(6, 2), spaces.Discrete(3))
    engine = import_agent(model, tmp_path, generic=True)
    schema = engine.manifest.observation
    assert (schema.window, schema.bar_features, schema.account_features) == (
        6,
        ("feature_0", "feature_1"),
        ("position",),
    )
    rng = np.random.default_rng(0)
    bars, position = rng.standard_normal((ROWS, 6, 2), dtype=np.float32), rng.integers(-1, 2, ROWS)
    theirs, _ = model.predict(bars, deterministic=True)
    decisions = engine.decide(bars, position[:, None], np.zeros(ROWS), position)
    np.testing.assert_array_equal(targets(decisions, position), theirs - 1)


def test_a_flat_observation_of_other_numbers_is_rows_of_one_feature(tmp_path: Path) -> None:
    model = trained(box(9), spaces.Discrete(3))
    engine = import_agent(model, tmp_path, generic=True)
    rng = np.random.default_rng(0)
    flat, position = rng.standard_normal((ROWS, 9), dtype=np.float32), rng.integers(-1, 2, ROWS)
    theirs, _ = model.predict(flat, deterministic=True)
    decisions = engine.decide(flat[:, :, None], position[:, None], np.zeros(ROWS), position)
    np.testing.assert_array_equal(targets(decisions, position), theirs - 1)
    assert Action.HOLD in decisions.action
