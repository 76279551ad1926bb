from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import ConfigError
from core.settings import DEFAULT_FILE, Settings, load_settings
from core.settings_file import merge, read_tree, secret

# Of the design document (3.2.1), every key; what it has no opinion on is the shipped file's.
DESIGN = """
hierarchical_reasoning_model:
  architecture: {hidden_dim: 256, h_module_dim: 512, l_module_dim: 256, embedding_dim: 128}
  hierarchical: {N_cycles: 3, T_timesteps: 5, convergence_threshold: 1e-4, reset_mechanism: soft}
  act: {enabled: true, max_segments: 8, min_segments: 1, exploration: 0.1, q_learning_lr: 0.001, reward_shaping: true}
  complexity_detection:
    {volatility_window: 20, trend_strength_window: 14, momentum_window: 10, complexity_threshold: 0.5}
deep_supervision:
  enabled: true
  max_supervision_segments: 6
  segment_loss_weight: 1.0
  gradient_approximation: one_step
  memory_optimization: true
performance:
  {inference_timeout_ms: 50, memory_limit_gb: 4, model_size_limit_mb: 100, batch_size: 64, gradient_clip_norm: 1.0}
training_params:
  hrm:
    learning_rate: 0.0003
    weight_decay: 0.01
    scheduler: cosine_annealing
    warmup_steps: 1000
    max_epochs: 50
    validation_frequency: 5
model_management:
  hrm_model_path: models/hrm_trading_model.pth
  checkpoint_frequency: 100
  best_model_metric: hierarchical_efficiency
  model_versioning: true
"""


def written(folder: Path, *changes: dict[str, Any]) -> Path:
    """The shipped file with changes, as a file."""
    tree = read_tree(DEFAULT_FILE)
    for change in changes:
        tree = merge(tree, change)
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def limits(settings: Settings, metric: str) -> list[float | None]:
    """What the gates allow of it at most, in the order of the phases."""
    gates = (getattr(settings.gates, name) for name in type(settings.gates).model_fields)
    return [limit.max for gate in gates for limit in gate if limit.metric == metric]


def test_every_preset_loads() -> None:
    for preset in ("compact", "default", "seed", "paper_27m"):
        assert load_settings(preset=preset, environ={}).preset == preset


def test_the_seed_preset_has_the_seeds_values() -> None:
    hrm = load_settings(preset="seed", environ={}).hierarchical_reasoning_model
    assert (hrm.architecture.h_module_dim, hrm.architecture.l_module_dim) == (512, 256)
    assert (hrm.hierarchical.N_cycles, hrm.hierarchical.T_timesteps) == (3, 5)
    assert hrm.act.max_segments == 8


def test_the_design_documents_own_section_loads_and_is_the_seed_preset(tmp_path: Path) -> None:
    theirs, shipped = written(tmp_path, yaml.safe_load(DESIGN)), load_settings(preset="seed", environ={})
    assert load_settings(theirs, preset="seed", environ={}) == shipped
    assert shipped.model_management.hrm_model_path == "models/hrm"  # its words, read as what is in their place
    assert shipped.model_management.best_model_metric == "regret_bps"


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("hrm_model_path", "elsewhere/hrm", r"models/hrm: .*paths\.state_dir .*elsewhere"),
        ("best_model_metric", "sharpe", r"regret_bps: .*adr/0006.*sharpe"),
        ("model_versioning", False, r"True: .*never overwritten.*False"),
    ],
)
def test_what_nothing_would_follow_is_refused_with_what_to_do(
    tmp_path: Path, key: str, value: object, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=rf"model_management\.{key}: can only be {remedy}"):
        load_settings(written(tmp_path, {"model_management": {key: value}}), environ={})


def test_a_number_that_is_set_in_one_place_holds_wherever_it_is_meant() -> None:
    limited = {"MEMORY_LIMIT_GB": "6", "INFERENCE_TIMEOUT_MS": "80", "MODEL_SIZE_LIMIT_MB": "200"}
    settings = load_settings(environ={f"HRM_PERFORMANCE__{name}": value for name, value in limited.items()})
    assert (settings.triggers.memory_gb, limits(settings, "rss_gb")) == (6, [6, 6])
    assert (settings.alerts.latency_ms, limits(settings, "p99_ms")) == (80, [80])
    assert limits(settings, "model_mb") == [200] * 4
    assert limits(settings, "challenger_p99_ms") == [settings.triggers.latency_ms] * 2 == [100, 100]


def test_a_place_that_is_set_itself_holds_and_what_refers_to_it_follows() -> None:
    environ = {"HRM_PERFORMANCE__MEMORY_LIMIT_GB": "6", "HRM_TRIGGERS__MEMORY_GB": "5", "HRM_ALERTS__LATENCY_MS": "70"}
    settings = load_settings(environ=environ | {"HRM_TRIGGERS__ERROR_RATIO": "${alerts.error_ratio}"})
    assert (settings.performance.memory_limit_gb, settings.triggers.memory_gb) == (6, 5)
    assert limits(settings, "rss_gb") == [6, 5]  # NFR1.3, and the rollback trigger
    assert (settings.alerts.latency_ms, settings.performance.inference_timeout_ms) == (70, 50)
    assert settings.triggers.error_ratio == settings.alerts.error_ratio == 0.01


def test_a_wrong_value_is_told_once_where_it_was_given() -> None:
    with pytest.raises(ConfigError, match=r"1 problem\(s\).*\n  - performance\.memory_limit_gb: .*\(got -1\)$"):
        load_settings(environ={"HRM_PERFORMANCE__MEMORY_LIMIT_GB": "-1"})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"TRIGGERS__MEMORY_GB": "${performance.memory}"}, r"triggers\.memory_gb: \$\{performance\.memory\} leads"),
        ({"SERVING__HOST": "${serving}"}, r"serving\.host: \$\{serving\} leads to no value"),
        ({"LIVE__BROKER": "${live.broker}"}, r"live\.broker: .* leads to no value"),
        ({"SERVING__PORT": "${trading.cost_bps}"}, r"serving\.port: .*integer.*\(got 1\.5\)"),
    ],
)
def test_a_reference_that_gives_no_such_value_is_a_problem_of_its_place(changes: dict[str, str], told: str) -> None:
    environ = {f"HRM_{name}": value for name, value in changes.items()} | {"HRM_NO_SUCH__THING": "1"}
    with pytest.raises(ConfigError, match=told) as raised:
        load_settings(environ=environ)
    problems = str(raised.value).splitlines()[1:]
    assert sum(name.lower().replace("__", ".") in problem for name in changes for problem in problems) == 1


def test_every_problem_is_listed_at_once() -> None:
    broken = {
        "HRM_HIERARCHICAL_REASONING_MODEL__HIERARCHICAL__N_CYCLES": "0",
        "HRM_HIERARCHICAL_REASONING_MODEL__HIERARCHICAL__T_TIMESTEPS": "0",
        "HRM_PERFORMANCE__INFERENCE_TIMEOUT_MS": "0",
        "HRM_HIERARCHICAL_REASONING_MODEL__ACT__MIN_SEGMENTS": "60",
        "HRM_ROLLOUT__STEPS": "[50, 20, 100]",
        "HRM_NO_SUCH__THING": "1",
        "HRM_SERVING__PROVIDERS": "[",
    }
    with pytest.raises(ConfigError) as raised:
        load_settings(preset="seed", environ=broken)
    message = str(raised.value)
    for place in ("N_cycles", "T_timesteps", "inference_timeout_ms", "max_segments", "steps", "HRM_NO_SUCH__THING"):
        assert place in message
    assert "HRM_SERVING__PROVIDERS: not readable as YAML" in message
    assert "7 problem(s)" in message


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="compact, default, seed, paper_27m"):
        load_settings(preset="huge", environ={})


def test_an_unknown_key_in_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="typo_section"):
        load_settings(written(tmp_path, {"typo_section": {"a": 1}}), environ={})


@pytest.mark.parametrize("text", ["- a list", "a: [1", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"settings\.yaml"):
        load_settings(file, environ={})


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="HRM_SETTINGS"):
        load_settings(tmp_path / "absent.yaml", environ={})


def test_the_environment_beats_the_preset_which_beats_the_file() -> None:
    environ = {"HRM_HIERARCHICAL_REASONING_MODEL__ARCHITECTURE__HIDDEN_DIM": "32"}
    assert load_settings(preset="seed", environ={}).hierarchical_reasoning_model.architecture.hidden_dim == 256
    assert load_settings(preset="compact", environ={}).hierarchical_reasoning_model.architecture.hidden_dim == 64
    assert load_settings(preset="compact", environ=environ).hierarchical_reasoning_model.architecture.hidden_dim == 32


def test_a_secret_comes_from_its_variable_or_file_and_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("  from a file\n")
    named = {"HRM_SMTP_PASSWORD_FILE": str(file)}
    both = secret("HRM_SMTP_PASSWORD", {"HRM_SMTP_PASSWORD": "given", **named})
    alone = secret("HRM_SMTP_PASSWORD", named)
    assert both is not None and both.get_secret_value() == "given"
    assert alone is not None and alone.get_secret_value() == "from a file" and "file" not in repr(alone)
    assert secret("HRM_SMTP_PASSWORD", {"HRM_SMTP_PASSWORD": " "}) is None
    file.write_text("rotated")
    again = secret("HRM_SMTP_PASSWORD", named)
    assert again is not None and again.get_secret_value() == "rotated"
    file.unlink()
    with pytest.raises(ConfigError, match=r"HRM_SMTP_PASSWORD_FILE: .*password is not readable"):
        secret("HRM_SMTP_PASSWORD", named)


def test_secrets_in_the_environment_are_no_settings() -> None:
    secrets = {"HRM_WEBHOOK_SECRET": "whsec_sesame", "HRM_SMTP_PASSWORD_FILE": "/run/secrets/smtp"}
    assert "sesame" not in repr(load_settings(environ=secrets))


def test_a_mail_users_password_is_not_sent_in_clear() -> None:
    email = "{host: m, port: 25, tls: none, user: desk, sender: a@b.c, recipients: [d@e.f], min_severity: info}"
    with pytest.raises(ConfigError, match=r"delivery\.notifications\.email: a user's password is not sent in clear"):
        load_settings(environ={"HRM_DELIVERY__NOTIFICATIONS__EMAIL": email})
