"""`hrm up`, `hrm down`, `hrm ps`: the whole desk on this machine (flows/up.py)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.settings import load_settings
from flows.options import AsJson, Data, existing
from flows.terminal import answer

if TYPE_CHECKING:
    from flows.up_record import Record

LOWEST_PORT, HIGHEST_PORT = 1024, 65535


def up(
    data: Data = None,
    prefect_port: Annotated[int | None, typer.Option(min=LOWEST_PORT, max=HIGHEST_PORT, help="4200.")] = None,
    service_port: Annotated[int | None, typer.Option(min=LOWEST_PORT, max=HIGHEST_PORT, help="8100.")] = None,
    backend_port: Annotated[int | None, typer.Option(min=LOWEST_PORT, max=HIGHEST_PORT, help="8200.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start everything on this machine: Prefect, flows, worker, service, backend, dashboard, paper trading."""
    from flows.up import bring_up  # imports what the parts need

    settings, started = load_settings(), time.monotonic()
    asked = {"prefect": prefect_port, "service": service_port, "backend": backend_port}
    ports = {name: port for name, port in asked.items() if port is not None}
    console = Console(stderr=True)
    record = bring_up(settings, _teller(console), ports=ports, data=existing(data))
    found = {"ready_s": round(time.monotonic() - started, 1)} | _addresses(record)
    if as_json:
        answer(found, as_json)
        return
    console.print(_welcome(found), highlight=False, soft_wrap=True)


def down(as_json: AsJson = False) -> None:
    """End what `hrm up` started, and nothing else."""
    from flows.up import bring_down

    ended: list[str] = []
    told = _teller(Console(stderr=True))

    def tell(part: str, what: str) -> None:
        ended.append(part)
        told(part, what)

    bring_down(load_settings(), tell)
    if as_json:
        answer({"ended": ended}, as_json)
    elif not ended:
        typer.echo("nothing of this state directory was running", err=True)


def ps(as_json: AsJson = False) -> None:
    """What `hrm up` started, and whether it still runs."""
    from flows.up import running

    record = running(load_settings())
    rows = [] if record is None else [_row(record, part.name) for part in record.parts]
    if as_json:
        answer({"parts": rows}, as_json)
        return
    if not rows:
        typer.echo("nothing runs; `make up` starts it", err=True)
        return
    Console().print(_table(rows))


def _teller(console: Console) -> Any:
    return lambda part, what: console.print(f"  [bold]{part:<8}[/] {escape(what)}", highlight=False, soft_wrap=True)


def _row(record: Record, name: str) -> dict[str, Any]:
    part = record.part(name)
    assert part is not None  # noqa: S101 - the name is the record's own
    return {
        "part": part.name,
        "state": "running" if part.leader else "ended",
        "pid": part.pid,
        "since_s": round(time.time() - part.started_at),
        "address": part.address,
        "log": str(part.log),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        colour = "green" if row["state"] == "running" else "yellow"
        table.add_row(
            *(f"[{colour}]{escape(str(value))}[/]" if key == "state" else str(value) for key, value in row.items())
        )
    return table


def _addresses(record: Record) -> dict[str, str]:
    """For a person; where a secret lies, never the secret."""
    place = {name: f"http://127.0.0.1:{port}" for name, port in record.ports.items()}
    state_dir = record.parts[0].log.parent.parent
    return {
        "dashboard": f"{place['backend']}/dashboard",
        "prefect": place["prefect"],
        "service": place["service"],
        "backend": place["backend"],
        "token": str(state_dir / "api_token"),
        "prefect_password": str(state_dir / "prefect" / "auth"),
        "logs": str(state_dir / "logs"),
    }


def _welcome(found: dict[str, Any]) -> str:
    notes = {
        "ready_s": "until all of it worked",
        "dashboard": "asks for the token",
        "prefect": "asks for the Prefect password: the whole line, user and all",
        "service": "the inference service; its API: /docs, with the token as a bearer's",
        "backend": "the backend's API: /docs, with the token as a bearer's",
        "token": "of the service, the backend and the dashboard: a file",
        "prefect_password": "a file; for the command line: PREFECT_API_AUTH_STRING=$(cat it), PREFECT_API_URL=.../api",
        "logs": "`hrm ps` shows what runs, `make down` ends it",
    }
    return "\n".join(
        f"{name.replace('_', ' '):<17} {value}  [dim]{escape(notes[name])}[/]" for name, value in found.items()
    )
