import pytest

from core.errors import ConfigError
from core.settings import load_settings
from core.settings_file import secret


def test_every_preset_loads() -> None:
    for preset in ("compact", "default", "seed", "paper_27m"):
        assert load_settings(preset=preset, environ={}).preset == preset


def test_the_seed_preset_has_the_seeds_values() -> None:
    hrm = load_settings(preset="seed", environ={}).hierarchical_reasoning_model
    assert (hrm.architecture.h_module_dim, hrm.architecture.l_module_dim) == (512, 256)
    assert (hrm.hierarchical.N_cycles, hrm.hierarchical.T_timesteps) == (3, 5)
    assert hrm.act.max_segments == 8


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


def test_an_unknown_key_in_a_file_is_refused(tmp_path) -> None:
    from core.settings import DEFAULT_FILE

    file = tmp_path / "settings.yaml"
    file.write_text(DEFAULT_FILE.read_text() + "\ntypo_section: {a: 1}\n")
    with pytest.raises(ConfigError, match="typo_section"):
        load_settings(file, environ={})


@pytest.mark.parametrize("text", ["- a list", "a: [1", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"settings\.yaml"):
        load_settings(file, environ={})


def test_a_missing_file_says_what_to_do(tmp_path) -> None:
    with pytest.raises(ConfigError, match="HRM_SETTINGS"):
        load_settings(tmp_path / "absent.yaml", environ={})


def test_the_environment_beats_the_preset_which_beats_the_file() -> None:
    environ = {"HRM_HIERARCHICAL_REASONING_MODEL__ARCHITECTURE__HIDDEN_DIM": "32"}
    assert load_settings(preset="seed", environ={}).hierarchical_reasoning_model.architecture.hidden_dim == 256
    assert load_settings(preset="compact", environ={}).hierarchical_reasoning_model.architecture.hidden_dim == 64
    assert load_settings(preset="compact", environ=environ).hierarchical_reasoning_model.architecture.hidden_dim == 32


def test_a_secret_comes_from_its_variable_or_file_and_is_never_shown(tmp_path) -> None:
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
