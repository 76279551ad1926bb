"""What the documents say is there: commands, options, pages, links. `tests/test_readme.py` runs the README's blocks."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from typer.core import TyperGroup

import cli

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
CODE = re.compile(r"```(?:sh|console)?\n(.*?)```|`([^`]+)`", flags=re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+?)(?:#[^)]*)?\)")
UsageError: Any = typer.BadParameter.__base__  # typer brings a click of its own, and does not export it
# What stands for something in a document, by what a command takes there.
PLACEHOLDERS = {"DATE": "2026-11-23", "N": "3", "PORT": "8100", "K": "2"}


def _commands(page: Path) -> Iterator[str]:
    """Every `hrm ...` of a page, up to what the shell would do with it."""
    for block, inline in CODE.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines() or [inline.replace("\n", " ")]:
            asked = re.sub(r"\s+#.*$|[\[\]]", "", line).replace('"..."', "why").strip()
            if asked.startswith("hrm ") and not asked.startswith("hrm ..."):
                yield re.split(r"\s*(?:[|>&;]|\$\()", asked)[0]


def _said() -> list[tuple[str, str]]:
    return sorted({(str(page.relative_to(ROOT)), said) for page in PAGES for said in _commands(page)})


def _parses(words: list[str]) -> None:
    """Raises typer's usage error for a command or an option that there is not."""
    command: Any = typer.main.get_command(cli.app)
    context = command.make_context("hrm", words)
    while isinstance(command, TyperGroup) and (rest := [*context._protected_args, *context.args]):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize(("page", "said"), _said())
def test_a_command_in_a_document_exists_with_its_options(page: str, said: str) -> None:
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(said)[1:]]
    try:
        _parses([word for word in words if word != "..."])
    except UsageError as error:
        left_out = type(error).__name__ in (
            "MissingParameter",
            "NoArgsIsHelpError",
            "BadOptionUsage",
        )  # named, not written out
        left_out = left_out or str(error).endswith("does not exist.")  # the reader's own file
        assert left_out, f"{page}: `{said}`: {error.format_message()}"


@pytest.mark.parametrize("wrong", ["rollout approv", "trade --liv", "rolout"])
def test_a_command_that_there_is_not_would_be_found(wrong: str) -> None:
    with pytest.raises(UsageError):
        _parses(wrong.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_decision_is_in_the_index() -> None:
    listed = re.findall(r"\| (\d+) \| \[(.+)\]\((.+\.md)\) \|", (DOCS / "adr" / "index.md").read_text(encoding="utf-8"))
    records = sorted((DOCS / "adr").glob("0*.md"))
    titles = [record.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for record in records]
    assert [(f"{number}. {title}", name) for number, title, name in listed] == [
        (title, record.name) for title, record in zip(titles, records, strict=True)
    ]


def test_every_page_is_in_the_navigation() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    decisions = {f"adr/{record.name}" for record in (DOCS / "adr").glob("0*.md")}  # listed in their index
    assert set(_leaves(site["project"]["nav"])) == pages - decisions


def _leaves(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    else:
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(each)


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere() -> None:
    zensical = str(Path(sys.executable).parent / "zensical")
    built = subprocess.run(
        [zensical, "build", "--strict"], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert built.returncode == 0 and "No issues" in built.stdout + built.stderr, built.stdout + built.stderr
    site = ROOT / "build" / "site"
    for page in ("runbook.html", "api/delivery.html"):
        text = (site / page).read_text(encoding="utf-8")
        assert re.findall(r'(?:src|<link[^>]* href)="(https?:[^"]+)"', text) == []
    assert "routing" in text


def test_every_requirement_names_what_proves_it() -> None:
    """Every file in the table exists, and every setting is one."""
    rows = [line.strip("|").split("|") for line in (DOCS / "requirements.md").read_text(encoding="utf-8").splitlines()]
    named = [name for row in rows if len(row) == 7 for name in re.findall(r"`((?:\w+/)[\w./*]*)`", " ".join(row[5:]))]
    assert len(named) > 20
    for name in named:
        assert list(ROOT.glob(name)), f"docs/requirements.md: {name} is not there"
