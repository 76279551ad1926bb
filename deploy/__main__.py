"""`python -m deploy`: write the rules and the dashboards anew. Tests compare what is committed."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from core.settings import load_settings
from deploy.dashboards import DASHBOARDS, dashboard
from deploy.rules import document

HERE = Path(__file__).resolve().parent
SETTINGS = HERE.parent / "config" / "settings.yaml"
HEAD = (
    "# Made by `python -m deploy` from config/settings.yaml: change the settings or deploy/rules.py, not this file.\n"
)


def files() -> dict[Path, str]:
    """What is generated, by place. The shipped settings alone count: this machine's environment does not."""
    rules = yaml.safe_dump(document(load_settings(SETTINGS, environ={})), sort_keys=False, width=120)
    boards = {HERE / "grafana" / f"{name}.json": _json(name) for name in DASHBOARDS}
    return {HERE / "prometheus" / "rules.yml": HEAD + rules} | boards


def _json(name: str) -> str:
    return json.dumps(dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    for place, text in files().items():
        place.write_text(text, encoding="utf-8")
