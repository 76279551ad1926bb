"""The promises of docs/architecture.md that a linter cannot see."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core", "hrm", "baselines", "trading", "serving", "delivery", "backend", "flows", "benchmarks")
LIMIT = 400  # lines of a module


def modules() -> list[Path]:
    return [ROOT / "cli.py", *(file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))]


@pytest.mark.parametrize("entry", ["serving.app", "serving.__main__", "serving.client"])
def test_the_serving_process_loads_no_torch(entry: str) -> None:
    program = (
        f"import sys, {entry}; print([m for m in ('torch', 'prefect', 'pandas', 'gymnasium') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_import_contracts_hold() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    answer = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("module", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_reads_in_one_sitting_and_says_what_it_is(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LIMIT
    assert ast.get_docstring(ast.parse(text)), f"{module.name} has no docstring"


def test_nothing_is_unpickled_but_by_trust() -> None:
    """What loads a user's own archive is behind `hrm baseline import --trust`; torch reads weights and nothing else."""
    forbidden = r"import (?:pickle|dill)\b|cloudpickle|allow_pickle=True| torch\.load\((?!.*weights_only=True)|joblib"
    found = {module.name: re.findall(forbidden, module.read_text()) for module in modules()}
    assert {name: words for name, words in found.items() if words} == {"trusted.py": ["import pickle"]}
