"""The tree of values that settings are made of: a YAML file, and what the environment says otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr

from core.errors import ConfigError

ENV_PREFIX = "HRM_"
REFERENCE = re.compile(r"\$\{([\w.]+)\}")  # ${section.name}: what that setting is
SECRETS = ("HRM_WEBHOOK_SECRET", "HRM_SMTP_PASSWORD")
NOT_SETTINGS = {
    "HRM_SETTINGS",
    "HRM_INSTRUMENTS",
    "HRM_ROOT",
    "HRM_API_TOKEN",
    "HRM_CRASH_AT",
    *SECRETS,
    *(f"{name}_FILE" for name in SECRETS),
}


def read_tree(file: Path) -> dict[str, Any]:
    """The file's mapping of sections. Raises ConfigError."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such settings file; unset HRM_SETTINGS for the shipped one") from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not readable as YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: must hold a mapping of sections, found {type(tree).__name__}")
    return tree


def environment_overrides(environ: Mapping[str, str], tree: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """HRM_A__B=value as {"a": {"b": value}}; names match without regard to case, values are YAML.

    What has no name in `tree` is a problem, in words.
    """
    overrides: dict[str, Any] = {}
    problems: list[str] = []
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX) or variable in NOT_SETTINGS:
            continue
        node, known = overrides, tree
        names = variable.removeprefix(ENV_PREFIX).split("__")
        for depth, name in enumerate(names):
            key = next((key for key in known if str(key).lower() == name.lower()), None)
            if key is None:
                problems.append(f"{variable}: no setting of that name (at '{name.lower()}')")
                break
            if depth == len(names) - 1:
                try:
                    node[key] = yaml.safe_load(text)
                except (yaml.YAMLError, ValueError):  # of a date that there is not
                    problems.append(f"{variable}: not readable as YAML")
            else:
                node = node.setdefault(key, {})
                known = known[key] if isinstance(known[key], dict) else {}
    return overrides, problems


def merge(base: Any, override: Any) -> Any:
    """`base` with what `override` names replaced, mapping by mapping."""
    if not (isinstance(base, dict) and isinstance(override, dict)):
        return override
    merged = dict(base)
    for key, value in override.items():
        merged[key] = merge(base[key], value) if key in base else value
    return merged


def dereferenced(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, set[str]], list[str]]:
    """The tree with every `${section.name}` replaced by that value, a whole one; a reference may lead to another.

    Also by place what it referred to, itself too where that leads nowhere, which is a problem, in words.
    """
    references, problems = dict[str, set[str]](), list[str]()

    def resolved(node: Any, *path: str | int) -> Any:
        if isinstance(node, dict):
            return {key: resolved(each, *path, key) for key, each in node.items()}
        if isinstance(node, list):
            return [resolved(each, *path, index) for index, each in enumerate(node)]
        value, place, passed = node, dotted(path), set[str]()
        at = place
        while isinstance(value, str) and (found := REFERENCE.fullmatch(value)):
            problem = f"{at}: {value} leads to no value; name a setting that has one"
            at = found[1]
            value = None if at in passed else _single_value(tree, at)
            passed.add(at)
            if value is None:
                passed.add(place)
                problems.append(problem)
        if passed:
            references[place] = passed
        return value

    return {key: resolved(each, key) for key, each in tree.items()}, references, list(dict.fromkeys(problems))


def _single_value(tree: dict[str, Any], name: str) -> Any:
    node: Any = tree
    for key in name.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return None if isinstance(node, dict | list) else node


def faults(errors: Sequence[Any], references: Mapping[str, set[str]]) -> list[str]:
    """pydantic's errors in words, without those of places whose reference is told of itself."""
    wrong = {dotted(detail["loc"]) for detail in errors}
    return [in_words(detail) for detail in errors if not references.get(dotted(detail["loc"]), set()) & wrong]


def dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path)


def in_words(detail: Any) -> str:
    """One of pydantic's errors as a line: where, what, and what was given."""
    place = dotted(detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    given = "" if isinstance(detail["input"], dict) else f" (got {detail['input']!r})"
    return f"{place}: {message}{given}"


def secret(name: str, environ: Mapping[str, str]) -> SecretStr | None:
    """What the environment variable `name` holds, or else the file that `name`_FILE names; None without either.

    Read whenever it is needed, so that a new secret in the file counts at once. Raises ConfigError, which never
    shows the secret.
    """
    text, file = environ.get(name, "").strip(), environ.get(f"{name}_FILE", "")
    if not text and file:
        try:
            text = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            kind = type(error).__name__
            raise ConfigError(f"{name}_FILE: {file} is not readable ({kind}); mend the file, or set {name}") from None
    return SecretStr(text) if text else None
