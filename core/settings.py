"""Settings: types, bounds and units of `config/settings.yaml`, which holds the values.

Order of precedence: environment (`HRM_SECTION__KEY`), the preset, the file. `${section.key}` is what that setting then
is. A function takes its own section; there is no module-level instance. Every problem of a file is reported at once
(seed 3.2.2).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from core.delivery_settings import DeliverySettings, EnvironmentName
from core.errors import ConfigError
from core.flow_settings import Flows
from core.gates import Limit
from core.halting import HaltingRule
from core.live_settings import Fyers, Live, Risk
from core.model_settings import ModelManagement
from core.observation import Timeframe
from core.section import Count, Positive, Ratio, Section
from core.settings_file import dereferenced, environment_overrides, faults, merge, read_tree

DEFAULT_FILE = Path(__file__).resolve().parent.parent / "config" / "settings.yaml"
LONGEST_COMPLEXITY_WINDOW = 64  # bars: how many returns the complexity has to remember


class Paths(Section):
    state_dir: Path


class Observation(Section):
    window: int = Field(ge=2, le=4096)  # base bars
    patch: Count
    timeframes: tuple[Timeframe, ...]

    @model_validator(mode="after")
    def _patches_fill_the_blocks(self) -> Observation:
        for name, bars in [("window", self.window), *((each.name, each.bars) for each in self.timeframes)]:
            if bars % self.patch:
                raise ValueError(f"patch ({self.patch}) must divide {name} ({bars})")
        return self

    @model_validator(mode="after")
    def _timeframes_differ(self) -> Observation:
        spans = {timeframe.span_s for timeframe in self.timeframes}
        if len(spans) < len(self.timeframes):
            raise ValueError(f"timeframes {[timeframe.name for timeframe in self.timeframes]} must differ")
        return self


class Architecture(Section):
    hidden_dim: Count
    h_module_dim: Count
    l_module_dim: Count
    embedding_dim: Count
    num_heads: Count
    h_layers: Count
    l_layers: Count
    expansion: Positive
    positions: Literal["rotary", "learned", "none"]

    @model_validator(mode="after")
    def _heads_divide_widths(self) -> Architecture:
        for name in ("h_module_dim", "l_module_dim"):
            width = getattr(self, name)
            if width % (2 * self.num_heads):
                raise ValueError(f"{name} ({width}) must be a multiple of 2 * num_heads = {2 * self.num_heads}")
        return self


class Hierarchical(Section):
    N_cycles: Count
    T_timesteps: Count
    convergence_threshold: Positive
    reset_mechanism: Literal["soft", "hard", "learned"]


class Act(Section):
    enabled: bool
    max_segments: int = Field(ge=1, le=64)
    min_segments: int = Field(ge=1, le=64)
    exploration: Ratio
    q_learning_lr: Positive
    reward_shaping: bool
    halting: Literal["q_learning", "single_head"]

    @model_validator(mode="after")
    def _maximum_covers_minimum(self) -> Act:
        if self.max_segments < self.min_segments:
            raise ValueError(f"max_segments {self.max_segments} must be >= min_segments {self.min_segments}")
        return self


class ComplexityDetection(Section):
    volatility_window: int = Field(ge=2, le=LONGEST_COMPLEXITY_WINDOW)  # bars
    trend_strength_window: int = Field(ge=2, le=LONGEST_COMPLEXITY_WINDOW)  # bars
    momentum_window: int = Field(ge=2, le=LONGEST_COMPLEXITY_WINDOW)  # bars
    complexity_threshold: Ratio


class HierarchicalReasoningModelSettings(Section):
    architecture: Architecture
    hierarchical: Hierarchical
    act: Act
    complexity_detection: ComplexityDetection

    @property
    def halting_rule(self) -> HaltingRule:
        """With ACT disabled every decision takes exactly `min_segments`."""
        act = self.act
        return HaltingRule(
            max_segments=act.max_segments if act.enabled else act.min_segments,
            min_segments=act.min_segments,
            complexity_threshold=self.complexity_detection.complexity_threshold,
            halting=act.halting,
        )


class DeepSupervision(Section):
    enabled: bool
    max_supervision_segments: Count
    segment_loss_weight: Positive
    gradient_approximation: Literal["one_step", "last_cycle", "full_bptt"]
    memory_optimization: bool = Field(description="detach the carry between segments")


class Performance(Section):
    inference_timeout_ms: float = Field(ge=1)
    memory_limit_gb: Positive
    model_size_limit_mb: Positive
    batch_size: Count
    gradient_clip_norm: Positive


class HrmTraining(Section):
    optimizer: Literal["adamw", "adam_atan2"]
    learning_rate: Positive
    weight_decay: float = Field(ge=0)
    scheduler: Literal["cosine_annealing", "constant"]
    warmup_steps: int = Field(ge=0)
    max_epochs: Count
    validation_frequency: Count
    rows_per_epoch: Count
    ema_decay: float = Field(ge=0, lt=1)
    label_temperature: Positive


class PpoTraining(Section):
    learning_rate: Positive
    total_timesteps: Count
    n_envs: Count
    n_steps: Count
    batch_size: Count
    n_epochs: Count
    gamma: Ratio
    gae_lambda: Ratio
    clip_range: Ratio
    ent_coef: float = Field(ge=0)
    vf_coef: float = Field(ge=0)
    max_grad_norm: Positive
    hidden_dim: Count
    cost_warmup_ratio: Ratio


class FineTuning(Section):
    learning_rate: Positive
    total_timesteps: Count
    n_epochs: Count
    kl_coef: float = Field(ge=0)


class TrainingParams(Section):
    hrm: HrmTraining
    ppo: PpoTraining
    fine_tuning: FineTuning


class SyntheticMarket(Section):
    bars_per_session: int = Field(ge=2)
    stay_probability: float = Field(gt=0.5, lt=1.0)
    signal_phi: float = Field(ge=0.0, lt=1.0)
    amplitude: float = Field(ge=0.0, le=1.0)
    volatility_bps: Positive
    garch_omega: Positive
    garch_alpha: float = Field(ge=0.0, lt=1.0)
    garch_beta: float = Field(ge=0.0, lt=1.0)
    train_sessions: Count
    validation_sessions: Count
    test_sessions: Count
    first_price: Positive

    @model_validator(mode="after")
    def _variance_is_stationary(self) -> SyntheticMarket:
        if self.garch_alpha + self.garch_beta >= 1:
            raise ValueError("garch_alpha + garch_beta must be below 1, or the variance explodes")
        return self


class Trading(Section):
    cost_bps: float = Field(ge=0)
    slippage_bps: float = Field(ge=0)
    initial_capital: Positive
    max_quantity: float = Field(ge=1)
    target_volatility_bps: Positive
    algo_id: str = Field(min_length=1, description="on record with every order")
    orders_per_s: Count = Field(description="that one exchange is sent within any second")


class Gates(Section):
    ppo_baseline_capture: tuple[Limit, ...]
    hrm_training: tuple[Limit, ...]
    parallel_validation: tuple[Limit, ...]
    gradual_migration: tuple[Limit, ...]
    full_deployment: tuple[Limit, ...]
    export: tuple[Limit, ...]
    book: tuple[Limit, ...]


class Rollout(Section):
    steps: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(min_length=1)
    salt: str = Field(min_length=1)
    cool_down_s: float = Field(ge=0)
    database_url_env: EnvironmentName | None = Field(default=None, description="the variable that holds its address")

    @model_validator(mode="after")
    def _steps_grow_to_100(self) -> Rollout:
        if list(self.steps) != sorted(set(self.steps)) or self.steps[-1] != 100:
            raise ValueError(f"steps {list(self.steps)} must grow strictly and end with 100")
        return self


class EvaluationSettings(Section):
    alpha: float = Field(gt=0, lt=0.5)
    power: float = Field(ge=0.5, lt=1.0)
    non_inferiority_bps: float = Field(ge=0, allow_inf_nan=False)
    embargo_sessions: int = Field(ge=0)
    max_overfitting_probability: Ratio
    min_deflated_sharpe: Ratio


class Rolling(Section):
    """Limits of a rolling window of decisions (serving/guard.py, `Window`)."""

    window_s: Positive
    min_samples: Count
    error_ratio: Ratio
    latency_ms: Positive


class Triggers(Rolling):
    performance_drop: Ratio
    performance_alpha: float = Field(gt=0, lt=0.5)
    performance_batch: Count
    memory_gb: Positive


class Alerts(Section):
    error_ratio: Ratio
    latency_ms: Positive
    memory_warning_gb: Positive
    memory_mitigation_gb: Positive
    performance_drop: Ratio


class Ladder(Rolling):
    dwell_s: Positive
    max_dwell_s: Positive

    @model_validator(mode="after")
    def _dwell_can_grow(self) -> Ladder:
        if self.max_dwell_s < self.dwell_s:
            raise ValueError(f"max_dwell_s {self.max_dwell_s} must be >= dwell_s {self.dwell_s}")
        return self


class Records(Section):
    retention_days: Count
    min_free_gb: float = Field(ge=0, allow_inf_nan=False)


class Jwt(Section):
    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    jwks_file: Path


class RateLimits(Section):
    decisions_per_s: Positive
    reads_per_s: Positive
    changes_per_s: Positive
    aborts_per_s: Positive


class Serving(Section):
    host: str
    port: int = Field(ge=0, le=65535)
    workers: int = Field(ge=1, le=64)
    threads: Count
    providers: tuple[str, ...] = Field(min_length=1)
    strict_provider: bool
    max_body_kb: Count
    rate_limits: RateLimits
    jwt: Jwt | None
    book_model: str | None = Field(description="name/version of a model of books to load at the start")
    max_rows: Count
    max_waiting: Count
    cache_entries: int = Field(ge=0)

    @property
    def url(self) -> str:
        """Where whoever is on this machine finds the service."""
        return f"http://{self.host}:{self.port}"


class Settings(Section):
    preset: str
    paths: Paths
    observation: Observation
    hierarchical_reasoning_model: HierarchicalReasoningModelSettings
    deep_supervision: DeepSupervision
    performance: Performance
    training_params: TrainingParams
    model_management: ModelManagement
    synthetic_market: SyntheticMarket
    trading: Trading
    risk: Risk
    live: Live
    fyers: Fyers
    gates: Gates
    rollout: Rollout
    evaluation: EvaluationSettings
    flows: Flows
    triggers: Triggers
    alerts: Alerts
    delivery: DeliverySettings
    ladder: Ladder
    records: Records
    serving: Serving


def load_settings(
    path: Path | None = None,
    *,
    preset: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read, override and check the settings. Raises ConfigError naming every problem at once.

    Args:
        path: the YAML file; by default `HRM_SETTINGS`, else the one shipped with the distribution.
        preset: name under `presets`; by default the file's `preset`. `auto` means `default` where an
            NVIDIA device is present and `compact` elsewhere.
        environ: environment to take overrides from, by default `os.environ`.
    """
    environ = os.environ if environ is None else environ
    file = path or Path(environ.get("HRM_SETTINGS", DEFAULT_FILE))
    tree = read_tree(file)
    presets = tree.pop("presets", {})
    overrides, problems = environment_overrides(environ, tree)
    name = preset or overrides.pop("preset", None) or tree.get("preset", "auto")
    if name == "auto":
        name = "default" if Path("/dev/nvidiactl").exists() else "compact"
    if not isinstance(presets, dict) or name not in presets:
        known = ", ".join(presets) if isinstance(presets, dict) else "none"
        problems.append(f"preset: unknown preset '{name}'; choose one of: {known}")
    else:
        tree = merge(tree, presets[name] or {})
    tree, references, unresolved = dereferenced(merge(tree, overrides) | {"preset": name})
    problems += unresolved
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        problems += faults(error.errors(include_url=False), references)
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"{file}: {len(problems)} problem(s), nothing was started:\n{listing}")
    return settings
