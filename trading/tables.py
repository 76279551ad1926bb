"""Dated tables of `config/instruments.yaml`: what holds from which day on, and where that is written.

    table.on(day)   the last row whose first day is not after `day`

A day before the first row is an error, never a guess. `HRM_INSTRUMENTS` names another file of the same form, whose
tables then hold for whatever the process does: rules newer than this release, or instruments of one's own.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from datetime import date
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, field_validator

from core.errors import ConfigError, DataError

SHIPPED = Path(__file__).resolve().parent.parent / "config" / "instruments.yaml"
FILE = Path(os.environ.get("HRM_INSTRUMENTS") or SHIPPED)


class Fact(BaseModel):
    """Where something is written, and when that was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(min_length=1)
    read: date
    assumed: bool = False


class Row(Fact):
    """A fact that holds from `first_day` until the next row's."""

    first_day: date = Field(alias="from")


class Ratio(Row):
    """A charge: a ratio of the order's value, or rupees where the table's name says so."""

    value: float = Field(ge=0.0, allow_inf_nan=False)


RowT = TypeVar("RowT", bound=Row)
ModelT = TypeVar("ModelT", bound=BaseModel)


class Table(RootModel[tuple[RowT, ...]], Generic[RowT]):
    """Rows of one fact, ascending by day."""

    model_config = ConfigDict(frozen=True)

    @field_validator("root")
    @classmethod
    def _days_ascend(cls, rows: tuple[RowT, ...]) -> tuple[RowT, ...]:
        for row, following in pairwise(rows):
            if row.first_day >= following.first_day:
                raise ValueError(f"the row of {following.first_day} must come after the row of {row.first_day}")
        return rows

    def on(self, day: date) -> RowT:
        """The row that holds on `day`. Raises DataError (`not_known`) before the first."""
        at = bisect_right(self.root, day, key=lambda row: row.first_day)
        if at == 0:
            begins = f"begins on {self.root[0].first_day} ({self.root[0].source})" if self.root else "is empty"
            raise DataError(
                f"{FILE.name}: nothing is known for {day}: the table {begins}; add a row with its source",
                code="not_known",
            )
        return self.root[at - 1]


def section(name: str, model: type[ModelT], file: Path = FILE) -> ModelT:
    """One part of the file, checked. Raises ConfigError naming every row that cannot be right."""
    try:
        return model.model_validate(_tree(file)[name])
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)]
        listing = "\n".join(f"  - {name}.{problem}" for problem in problems)
        raise ConfigError(f"{file}: {len(problems)} problem(s):\n{listing}", code="bad_tables") from None


@cache
def _tree(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{file}: not readable as YAML: {error}; unset HRM_INSTRUMENTS for the shipped one", code="bad_tables"
        ) from None
    if not isinstance(tree, dict) or set(tree) != {"calendar", "charges", "instruments"}:
        raise ConfigError(f"{file}: must hold exactly calendar, charges and instruments", code="bad_tables")
    return tree
