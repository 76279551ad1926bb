"""`hrm baseline import` as a person uses it: from an archive of their own to a backtest, and what --trust is for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from command_line import Said, said_here
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from baselines.sb3.importing import Options
from core.errors import ModelError
from core.settings import Settings, load_settings
from flows.baseline_commands import import_and_publish
from serving.engine import load_engine
from trading.features import schema

MARKET = {"TRAIN_SESSIONS": "20", "VALIDATION_SESSIONS": "12", "TEST_SESSIONS": "12", "BARS_PER_SESSION": "20"}
SMALL = {f"HRM_SYNTHETIC_MARKET__{name}": value for name, value in MARKET.items()}


class Still(gym.Env):
    """Observations of our shapes, and nothing to learn."""

    def __init__(self, settings: Settings) -> None:
        ours = schema(settings.observation)
        shapes = {"bars": (ours.window, len(ours.bar_features)), "account": (len(ours.account_features),)}
        self.observation_space = spaces.Dict({n: spaces.Box(-9.0, 9.0, s, np.float32) for n, s in shapes.items()})
        self.action_space = spaces.MultiDiscrete([5, 4])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


class TwiceAsSure(ActorCriticPolicy):
    """A class of its own that computes something else from its weights."""

    def get_distribution(self, obs: Any) -> Any:
        return super().get_distribution(-obs)


class Renamed(ActorCriticPolicy):
    """A class of its own that computes what an MlpPolicy does."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    state_dir = str(tmp_path_factory.mktemp("import"))
    return load_settings(preset="compact", environ=SMALL | {"HRM_PATHS__STATE_DIR": state_dir})


@pytest.fixture(scope="module")
def archive(settings: Settings) -> Path:
    model = PPO("MultiInputPolicy", Still(settings), n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
    file = settings.paths.state_dir / "agent.zip"
    model.learn(16).save(file)
    return file


@pytest.fixture
def hrm(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    for name, value in (SMALL | {"HRM_PATHS__STATE_DIR": str(settings.paths.state_dir)}).items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: said_here(monkeypatch, capsys, *arguments)


def test_an_imported_agent_is_backtested_like_any_other(hrm: Callable[..., Said], archive: Path) -> None:
    said = hrm("baseline", "import", archive, "--version", "mine", "--json")
    assert said.code == 0, said.err
    told = said.json
    assert told["model"] == "ppo/mine"
    assert told["action_space"] == "MultiDiscrete(nvec=(5, 4))"
    assert not told["generic"] and not told["normalized"]
    backtested = hrm("backtest", "--model", "ppo/mine", "--json")
    assert backtested.code == 0, backtested.err
    tested = backtested.json
    assert tested["decisions"] == sum(tested["action_counts"]) > 100
    again = hrm("baseline", "import", archive, "--version", "mine")
    assert again.code == 2
    assert "exists already" in again.err


def test_its_manifest_says_where_it_comes_from(settings: Settings, archive: Path) -> None:
    import_and_publish(archive, None, Options(), settings, version="origin")
    manifest = load_engine(settings, "ppo/origin").manifest
    assert manifest.imported
    assert manifest.algorithm == "ppo"
    assert manifest.observation == schema(settings.observation)


def test_quantities_that_are_no_numbers_are_a_usage_error(hrm: Callable[..., Said], archive: Path) -> None:
    answer = hrm("baseline", "import", archive, "--quantities", "1,many")
    assert answer.code == 2
    assert "'many' is no number" in answer.err
    assert len(answer.err.splitlines()) == 1


def own_policy(settings: Settings, policy: type[ActorCriticPolicy], file: Path) -> Path:
    env = gym.wrappers.FlattenObservation(Still(settings))
    PPO(policy, env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(16).save(file)
    return file


def test_trust_is_needed_for_a_policy_of_another_class_and_warns(settings: Settings, tmp_path: Path) -> None:
    file = own_policy(settings, Renamed, tmp_path / "own.zip")
    swapped = Options(generic=True)  # Gymnasium flattens the account first, which is none of our layouts
    with pytest.raises(ModelError, match="--trust"):
        import_and_publish(file, None, swapped, settings, version="renamed")
    found = import_and_publish(file, None, swapped, settings, version="renamed", trust=True)
    assert found["model"] == "ppo/renamed"


def test_trust_does_not_publish_what_it_cannot_rebuild(settings: Settings, tmp_path: Path) -> None:
    file = own_policy(settings, TwiceAsSure, tmp_path / "own.zip")
    with pytest.raises(ModelError, match="computes something else"):
        import_and_publish(file, None, Options(generic=True), settings, version="other", trust=True)
    assert not (settings.paths.state_dir / "models" / "ppo" / "other").exists()


def test_trusted_and_read_archives_are_the_same_model(settings: Settings, archive: Path) -> None:
    models = []
    for version, trust in (("read", False), ("trusted", True)):
        import_and_publish(archive, None, Options(), settings, version=version, trust=trust)
        models.append((settings.paths.state_dir / "models" / "ppo" / version / "model.onnx").read_bytes())
    assert models[0] == models[1]


def test_without_stable_baselines3_trust_says_what_to_install(settings: Settings, archive: Path) -> None:
    program = (
        "import sys; sys.modules['stable_baselines3'] = None\n"
        "from pathlib import Path\n"
        "from baselines.sb3.importing import Options\n"
        "from core.errors import ConfigError\n"
        "from core.settings import load_settings\n"
        "from flows.baseline_commands import import_and_publish\n"
        f"settings, archive = load_settings(), Path({str(archive)!r})\n"
        "print(import_and_publish(archive, None, Options(), settings, version='without')['model'])\n"
        "try: import_and_publish(archive, None, Options(), settings, version='with', trust=True)\n"
        "except ConfigError as error: print(error)\n"
    )
    environment = os.environ | {"HRM_PATHS__STATE_DIR": str(settings.paths.state_dir)}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=root, check=True
    )
    assert done.stdout.splitlines()[0] == "ppo/without"
    assert "pip install stable-baselines3" in done.stdout
