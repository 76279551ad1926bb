"""The commit of this code, where it runs from a git checkout."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """Its hash; None outside a checkout or without git."""
    root = Path(__file__).parent.parent
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run(  # noqa: S603 - git's own path, fixed arguments
        [git, "rev-parse", "HEAD"], capture_output=True, text=True, cwd=root, check=False
    )
    return done.stdout.strip() or None
