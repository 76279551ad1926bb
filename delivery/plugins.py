"""Metrics of a desk's own: a function of an installed package, found by its name.

    [project.entry-points."hrm.metrics"]               in the pyproject.toml of a package beside the service
    slippage_bps = "desk.metrics:slippage_bps"

    provider: {plugin: {name: slippage_bps, symbol: "{{args.symbol}}"}}          in a plan

A plan names what is installed and brings no code. Every other key is an argument, as text. The function runs in a
thread beside the service and returns a number, (number, samples), or None for no data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from core.errors import DataError
from delivery.aside import Aside

GROUP = "hrm.metrics"

Plugin = Callable[..., float | tuple[float, int] | None]


def installed(name: str) -> EntryPoint:
    """Raises DataError where nothing, or more than one thing, goes by this name."""
    found = entry_points(group=GROUP, name=name)
    if len(found) != 1:
        known = ", ".join(sorted(entry_points(group=GROUP).names)) or "none"
        what = "not installed where the service runs" if not found else f"the name of {len(found)} plugins"
        raise DataError(f"plugin '{name}' is {what}; installed under the entry points {GROUP}: {known}")
    return next(iter(found))


async def called(name: str, arguments: Mapping[str, str], places: Aside, *, within_s: float) -> list[tuple[Any, ...]]:
    """What the plugin says, as the rows of a query: none, or one of value[, samples]. Raises DataError."""
    try:
        async with asyncio.timeout(within_s):
            said = await places.run(partial(_call, installed(name), arguments))
    except TimeoutError:
        raise DataError(f"no answer within {within_s:g} s") from None
    except DataError:
        raise
    except Exception as error:  # a plugin raises what it likes; to a measurement all of it is one thing
        raise DataError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
    if said is None:
        return []
    return [said] if isinstance(said, tuple) else [(said,)]


def _call(entry: EntryPoint, arguments: Mapping[str, str]) -> float | tuple[float, int] | None:
    function: Plugin = entry.load()
    return function(**arguments)
