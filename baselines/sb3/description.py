"""What an archive's JSON says in plain text about spaces, activation and algorithm.

stable-baselines3 writes beside every pickle the attributes of the object as text: `_shape: '[60, 6]'`,
`nvec: '[ 5 11]'`. These texts are parsed by what they may be, never evaluated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baselines.sb3.archive import TRUST, refused

Shape = tuple[int, ...]
LONGEST = 2_000  # of a text that is looked at

POLICIES = {"stable_baselines3.common.policies": False, "sb3_contrib.common.maskable.policies": True}
ACTIVATIONS = {"Tanh": "tanh", "ReLU": "relu", "ELU": "elu", "LeakyReLU": "leaky_relu"}
# What may be passed to a policy without changing what it computes from its weights.
HARMLESS = {"net_arch", "activation_fn", "ortho_init", "log_std_init", "optimizer_class", "optimizer_kwargs"}
HARMLESS |= {"share_features_extractor", "normalize_images", "full_std", "use_expln"}


@dataclass(frozen=True)
class Discrete:
    n: int


@dataclass(frozen=True)
class MultiDiscrete:
    nvec: Shape


@dataclass(frozen=True)
class Box:
    """A box of one dimension, with its bounds."""

    low: tuple[float, ...]
    high: tuple[float, ...]


ActionSpace = Discrete | MultiDiscrete | Box


@dataclass(frozen=True)
class Description:
    observation: tuple[tuple[str, Shape], ...]  # in the order in which they are laid end to end; "" if there is but one
    action: ActionSpace
    activation: str | None  # a value of ACTIVATIONS; None: stated, but not one of them
    masked: bool  # trained with illegal actions masked (MaskablePPO)


def describe(data: Mapping[str, Any]) -> Description:
    """Raises ModelError for another algorithm, another policy than an MLP, and spaces it cannot read."""
    masked = _require_ppo(data)
    kwargs = data.get("policy_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise refused("policy_kwargs are not readable" + TRUST)
    unknown = {name for name in kwargs if not name.startswith(":")} - HARMLESS
    if unknown or data.get("use_sde"):
        what = ", ".join(sorted(unknown))[:200] or "use_sde"
        raise refused(f"its policy was made with {what}, which changes what is computed from its weights")
    return Description(
        observation=_observation(_mapping(data, "observation_space")),
        action=_action(_mapping(data, "action_space")),
        activation=activation_named(kwargs.get("activation_fn")),
        masked=masked,
    )


def _require_ppo(data: Mapping[str, Any]) -> bool:
    """True if it is a MaskablePPO."""
    module = _text(_mapping(data, "policy_class").get("__module__"))
    if "recurrent" in module:
        raise refused("a RecurrentPPO carries a state from bar to bar, which a model of one pass has no place for")
    if not {"clip_range", "n_epochs", "gae_lambda"} <= data.keys():
        raise refused(
            "no PPO archive: it has no clip_range, n_epochs and gae_lambda; other algorithms are not imported"
        )
    if module not in POLICIES:
        raise refused(f"its policy is a class of {module[:80]!r}, not stable-baselines3's own" + TRUST)
    return POLICIES[module]


def _mapping(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = data.get(name)
    if not isinstance(found, dict):
        raise refused(f"its data says nothing readable about {name}" + TRUST)
    return found


def activation_named(stated: Any) -> str | None:
    """By the name of a class as text; nothing stated is stable-baselines3's default, tanh."""
    if stated is None:
        return "tanh"
    found = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", _text(stated))
    return ACTIVATIONS.get(found[1]) if found else None


def _observation(space: dict[str, Any]) -> tuple[tuple[str, Shape], ...]:
    kind = _kind(space)
    if kind == "Box":
        return (("", _integers(space.get("_shape"))),)
    if kind == "Dict":
        return _boxes(_text(space.get("spaces")))
    raise refused(f"its observations are a {kind}; a Box, or a Dict of bars and account, can be imported")


def _boxes(text: str) -> tuple[tuple[str, Shape], ...]:
    """From "{'bars': Box(-inf, inf, (60, 6), float32), 'account': ...}"."""
    number, shape = r"[-+.\w]+", r"\(\d+(?:, \d+)*,?\)"
    box = rf"'(\w+)': Box\({number}, {number}, ({shape}), \w+\)"
    if not re.fullmatch(rf"\{{{box}(?:, {box})*\}}", text):
        raise refused(f"its observations are {text[:200]}; a Dict must be of boxes, bars and account")
    return tuple((name, _integers(found)) for name, found in re.findall(box, text))


def _action(space: dict[str, Any]) -> ActionSpace:
    kind = _kind(space)
    if kind == "Discrete":
        return Discrete(*_integers(f"[{_text(space.get('n'))}]"))
    if kind == "MultiDiscrete":
        return MultiDiscrete(_integers(space.get("nvec")))
    if kind == "Box":
        return Box(_numbers(space.get("low")), _numbers(space.get("high")))
    raise refused(f"its actions are a {kind}; Discrete, MultiDiscrete and Box can be imported")


def _kind(space: dict[str, Any]) -> str:
    found = re.fullmatch(r"<class 'gym(?:nasium)?\.spaces\.\w+\.(\w+)'>", _text(space.get(":type:")))
    if not found:
        raise refused("its data does not say what a space is" + TRUST)
    return found[1]


def _integers(text: Any) -> Shape:
    """Of '[60, 6]', '[ 5 11]', '(17,)' or a JSON list."""
    found = _text(text)
    if not re.fullmatch(r"[\[(]\s*\d{1,9}(?:[,\s]+\d{1,9})*,?\s*[\])]", found):
        raise refused(f"its data gives a shape as {found[:80]!r}" + TRUST)
    return tuple(int(number) for number in re.findall(r"\d+", found))


def _numbers(text: Any) -> tuple[float, ...]:
    """Of '[-1.  0.]'."""
    found = _text(text)
    try:
        numbers = tuple(float(word) for word in found[1:-1].split()) if found[:1] + found[-1:] == "[]" else ()
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise refused(f"its data gives the bounds of a Box as {found[:80]!r}, which are not finite numbers" + TRUST)
    return numbers


def _text(value: Any) -> str:
    """A text, or a number or a list of them as a text; empty for anything else, or what is too long to be either."""
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value[:100]):
        value = str(value[:100])
    text = str(value) if isinstance(value, str | int) else ""
    return text if len(text) <= LONGEST else ""
