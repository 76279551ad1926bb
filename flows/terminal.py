"""How a command answers: one JSON object or a table, and an error in one line with its exit code."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any, NoReturn

REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another --state-dir; nothing half-written was kept",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another --state-dir",
    errno.EFBIG: "the file may not grow further; raise the limit or choose another --state-dir",
    errno.EACCES: "no permission; choose a place you may write to",
    errno.EPERM: "no permission; choose a place you may write to",
    errno.EROFS: "the disk is read-only; choose a place you may write to",
    errno.ENOENT: "no such place; check the path",
    errno.ENOTDIR: "a file is in the way; check the path",
    errno.EEXIST: "a file is in the way of a folder; check the path",
}


def answer(value: dict[str, Any], as_json: bool) -> None:
    """One JSON object as the last line, or a table for a person; of torchrun's processes the first one speaks."""
    if not _speaks():
        return
    if as_json:
        print(json.dumps(value, default=str))  # noqa: T201 - the command's answer
    else:
        _table(value)


def fail(code: str, message: str, exit_code: int = 2) -> NoReturn:
    """Say what is wrong and what to do, and exit."""
    print(f"error: {message}", file=sys.stderr)  # noqa: T201 - the command's answer
    if "--json" in sys.argv and _speaks():
        print(json.dumps({"error": {"code": code, "message": message}}))  # noqa: T201 - the command's answer
    sys.exit(exit_code)


def _speaks() -> bool:
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"


def disk_problem(error: OSError) -> tuple[str, str]:
    """(code, message) of an operating-system error a person can mend; any other is raised again."""
    if error.errno not in REMEDIES:
        raise error
    return "disk_error", f"{error.filename or 'writing'}: {REMEDIES[error.errno]}"


def _table(value: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.pretty import Pretty
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for name, content in value.items():
        table.add_row(name.replace("_", " "), Text(content) if isinstance(content, str) else Pretty(content))
    Console().print(table)
