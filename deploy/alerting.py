"""One alert of a rule file: what is asked, how bad it is, what a person reads, where the runbook says what to do."""

from __future__ import annotations

import re
from typing import Any

RUNBOOK = "docs/runbook.md"


def alert(name: str, expression: str, severity: str, wait: str | None = None) -> dict[str, Any]:
    """`severity`: critical or warning. `wait`: how long the expression must hold, such as 30s."""
    found: dict[str, Any] = {"alert": name, "expr": expression, "labels": {"severity": severity}}
    return found | ({"for": wait} if wait else {})


def told(found: dict[str, Any], summary: str, description: str, section: str) -> dict[str, Any]:
    """The alert, in words; `section`: the runbook's heading."""
    annotations = {"summary": summary, "description": description, "runbook_url": f"{RUNBOOK}#{anchor(section)}"}
    return found | {"annotations": annotations}


def anchor(heading: str) -> str:
    """As renderers of Markdown make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
