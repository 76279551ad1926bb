"""`hrm rollout ...`: ask and steer the rollout of the running service, and keep its log."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import ConfigError, DataError
from core.settings import load_settings
from flows.options import AsJson, Data, Seed, existing
from flows.terminal import answer, fail

if TYPE_CHECKING:
    from delivery.plan import Plan
    from serving.calls import Answer, Call, Command
    from serving.schemas_rollout import RolloutResponse

NOT_VALID, BAD_INPUT = 1, 2  # a plan or a log that does not hold; none at all
FLAWED = 1  # a rehearsal with anything that must not be
ROLLED_BACK = 5  # as `hrm migrate` says it

app = typer.Typer(no_args_is_help=True, help="Ask and steer the rollout of the running service.")

Key = Annotated[
    Path | None,
    typer.Option(
        "--key", help="File with an API key to act with; by default the service's own token, which is `local`."
    ),
]
Reason = Annotated[str, typer.Option(help="Written into the rollout's log.")]
AtVersion = Annotated[
    int | None, typer.Option(min=0, help="Only if the rollout is still at this version (`hrm rollout status`).")
]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="YAML: see config/plans/careful.yaml.")]


@app.callback()
def common(context: typer.Context, key: Key = None) -> None:
    context.obj = key


@app.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Phase, weight, what is waited for, approvals, what the guard has seen, and why it was rolled back."""
    from serving import calls

    _show(_ask(context, calls.rollout()), as_json)


@app.command()
def start(
    context: typer.Context,
    challenger: Annotated[str, typer.Option(help="Who wants to decide: name/version.")],
    champion: Annotated[
        str | None, typer.Option(help="Who decides now: name/version. By default whoever does.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Plan in YAML; by default the one of the service's settings.")
    ] = None,
    reason: Reason = "",
    at_version: AtVersion = None,
    as_json: AsJson = False,
) -> None:
    """Load a challenger and evaluate it in the shadow; it decides nothing before the plan's first weight."""
    from serving import calls

    frozen = None if plan is None else _planned(plan)
    acting = champion or _ask(context, calls.rollout()).champion
    if acting is None:
        raise ConfigError("nobody decides yet: name who shall until then with --champion", code="usage")
    call = calls.start(acting, challenger, plan=frozen, reason=reason, version=at_version)
    _show(_ask(context, call), as_json)


@app.command()
def approve(context: typer.Context, reason: Reason = "", at_version: AtVersion = None, as_json: AsJson = False) -> None:
    """Speak for the promotion, with a --key of your own: one approval for each, and none of whoever started."""
    from serving.calls import ServiceError

    try:
        _command(context, "approve", reason, at_version, as_json)
    except ServiceError as error:
        if error.code != "self_approval":
            raise
        remedy = "give the file of another key: hrm rollout --key FILE approve"
        raise ConfigError(f"{error}; {remedy}", code=error.code) from None


@app.command()
def promote(context: typer.Context, reason: Reason = "", at_version: AtVersion = None, as_json: AsJson = False) -> None:
    """One step further, where the plan waits for a person; after the last step the challenger becomes champion."""
    _command(context, "promote", reason, at_version, as_json)


@app.command()
def pause(context: typer.Context, reason: Reason = "", at_version: AtVersion = None, as_json: AsJson = False) -> None:
    """Stop advancing; the weight stays."""
    _command(context, "pause", reason, at_version, as_json)


@app.command()
def resume(context: typer.Context, reason: Reason = "", at_version: AtVersion = None, as_json: AsJson = False) -> None:
    """Advance again."""
    _command(context, "resume", reason, at_version, as_json)


@app.command()
def abort(context: typer.Context, reason: Reason = "", as_json: AsJson = False) -> None:
    """Take all traffic from the challenger, now. Latched."""
    _command(context, "abort", reason, None, as_json)


@app.command()
def rollback(context: typer.Context, reason: Reason = "", as_json: AsJson = False) -> None:
    """Back to the last good champion, even after promotion. Latched."""
    _command(context, "rollback", reason, None, as_json)


@app.command()
def events(
    context: typer.Context,
    after: Annotated[int, typer.Option(min=0, help="Those that come after this version.")] = 0,
    as_json: AsJson = False,
) -> None:
    """The log of the rollout, oldest first: when, what, who and why."""
    from rich.console import Console

    from flows.asking import client_of
    from flows.rollout_log import from_service
    from flows.rollout_screen import events_table
    from serving import calls

    _ask(context, calls.rollout())
    with client_of(load_settings(), context.obj) as client:
        found = list(from_service(client, after))
    if as_json:
        answer({"events": [event.model_dump(mode="json") for event in found]}, as_json)
    else:
        Console().print(events_table(found))


@app.command()
def watch(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Show it as it is now, and end.")] = False,
) -> None:
    """Follow a rollout until it ends, through restarts of the service. Exits with 0, or 5 where it was rolled back."""
    from flows.asking import client_of
    from flows.rollout_watch import follow
    from serving import calls

    _ask(context, calls.rollout())  # waits for a service that is starting, and says how to start one
    with client_of(load_settings(), context.obj) as client:
        ended = follow(client, once=once)
    if not once and ended.rollout.latched:
        raise typer.Exit(ROLLED_BACK)


@app.command()
def lint(file: PlanFile, as_json: AsJson = False) -> None:
    """Check a plan, and show its stages. Exits with 1 and every problem if it is not valid."""
    from rich.console import Console

    from flows.rollout_plan import read_plan
    from flows.rollout_screen import plan_facts, stages_table

    try:
        plan = read_plan(file)
    except ConfigError as error:
        fail(error.code, str(error), NOT_VALID if error.code == "plan_invalid" else BAD_INPUT)
    if not as_json:
        Console().print(stages_table(plan))
    answer(plan_facts(plan), as_json)


@app.command()
def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where to write it: JSON Lines, one event or refusal each.")],
    database: Annotated[
        str | None,
        typer.Option(
            help="Read this rollout.db, or the server behind the variable that rollout.database_url_env names, instead "
            "of asking the service; it is not changed."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the whole log of the rollout for the audit, and what was refused; exits with 1 if a chain is broken."""
    from flows import rollout_log
    from flows.asking import client_of
    from serving import calls

    try:
        if database is not None:
            place = rollout_log.place_named(database, load_settings())
            proof = rollout_log.write(rollout_log.from_database(place), file)
        else:
            _ask(context, calls.rollout())
            with client_of(load_settings(), context.obj) as client:
                proof = rollout_log.write(rollout_log.all_from_service(client), file)
        proof.require_whole()
    except DataError as error:
        fail(error.code, str(error), NOT_VALID)
    answer({"file": str(file)} | proof.facts(), as_json)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="What `hrm rollout export` has written.")], as_json: AsJson = False
) -> None:
    """Recompute the chains of an exported log. Exits with 1 and names the first line that does not fit."""
    from flows import rollout_log

    try:
        proof = rollout_log.verified(rollout_log.read(file))
    except DataError as error:
        fail(error.code, str(error), NOT_VALID)
    answer({"file": str(file)} | proof.facts() | {"whole": True}, as_json)


@app.command()
def judge(
    attempt: Annotated[
        int | None, typer.Option(min=1, help="The version its start led to; by default the latest one.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Plan in YAML; by default the attempt's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a rollout again from its database, by another plan: where each metric leads to, and the first change.

    No service need run. What the guard and people did is not judged.
    """
    from rich.console import Console

    from flows import rollout_judge

    judgement = rollout_judge.judged(load_settings(), attempt, plan)
    if as_json:
        answer(rollout_judge.facts(judgement), as_json)
    else:
        Console().print(rollout_judge.screen(judgement))


@app.command()
def drill(as_json: AsJson = False) -> None:
    """Break a challenger in a live service under load, once per trigger, and time the rollback."""
    from flows.drill import run_drill

    with tempfile.TemporaryDirectory(prefix="hrm-drill-") as folder:
        results = run_drill(load_settings(), Path(folder))
    answer({"triggers": results}, as_json)


@app.command()
def rehearse(
    symbols: Annotated[int, typer.Option(min=6, max=100, help="How many are traded.")] = 20,
    data: Data = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of its own for the page and all records; by default in the state dir.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Trade a day on paper with a challenger that breaks: canary, rollback, hand-over, a page. Exits with 1 on a flaw.

    A service of its own is asked; nothing that runs is touched.
    """
    from flows.rehearsal import rehearse as run

    result = run(load_settings(), symbols=symbols, seed=seed, data=existing(data), folder=out)
    answer(result, as_json)
    raise typer.Exit(0 if result["passed"] else FLAWED)


def _ask(context: typer.Context, call: Call[Answer]) -> Answer:
    from flows.asking import ask

    return ask(load_settings(), call, context.obj)


def _command(context: typer.Context, name: Command, reason: str, version: int | None, as_json: bool) -> None:
    from serving import calls

    _show(_ask(context, calls.command(name, reason=reason, version=version)), as_json)


def _show(state: RolloutResponse, as_json: bool) -> None:
    if as_json:
        answer(state.model_dump(mode="json"), as_json)
        return
    from rich.console import Console

    from flows.rollout_screen import status_screen

    Console().print(status_screen(state))


def _planned(file: Path) -> Plan:
    """The plan with its sessions; says so where fewer are known than it waits for."""
    from flows.rollout_plan import read_plan, sessions_needed, with_sessions

    plan = with_sessions(read_plan(file), datetime.now(UTC))
    known: Any = plan.market.sessions if plan.market else ()
    needed = sessions_needed(plan)
    if needed > len(known):
        typer.echo(
            f"{file} waits for {needed} whole sessions, of which {len(known)} are known, the last on {known[-1].day}: "
            f"after that the rollout will pause",
            err=True,
        )
    return plan
