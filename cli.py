"""`hrm ...`: thin entry points. What a command does is in the package it calls.

Exit codes: 0 done (migrate: HRM took over), 2 bad input, 1 a bug; migrate also 3 a gate said no, 4 a gate had too
little data, 5 the guard rolled back, 130 Ctrl-C. With --json the last line of stdout is exactly one JSON object.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer._click.exceptions import ClickException

from benchmarks import commands as bench
from core.errors import ConfigError, HrmSystemError
from core.log import configure_logging, configure_service_logging
from core.settings import Settings, load_settings
from flows import (
    backtest_commands,
    baseline_commands,
    book_commands,
    data_commands,
    explain_commands,
    fyers_commands,
    key_commands,
    live_commands,
    replay_commands,
    rollout_commands,
    sweep_commands,
    trade_commands,
    up_commands,
)
from flows.options import AsJson, Data, Format, Preset, Seed, existing
from flows.terminal import answer, disk_problem, fail

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Move from PPO to HRM, gated and reversible."
)
app.add_typer(rollout_commands.app, name="rollout")
app.add_typer(data_commands.app, name="data")
app.add_typer(bench.app, name="bench")
app.add_typer(baseline_commands.app, name="baseline")
app.add_typer(book_commands.app, name="book")
app.add_typer(key_commands.app, name="keys")
app.add_typer(key_commands.models_app, name="models")
app.add_typer(trade_commands.app, name="trade")
app.add_typer(fyers_commands.app, name="fyers")
app.command()(backtest_commands.backtest)
app.command()(replay_commands.replay)
app.command()(explain_commands.explain)
app.command()(sweep_commands.sweep)
app.command()(sweep_commands.walk_forward)
app.command()(up_commands.up)
app.command()(up_commands.down)
app.command()(up_commands.ps)

INTERRUPTED = 130  # as shells report a process that Ctrl-C ended


class Algorithm(StrEnum):
    hrm = "hrm"
    ppo = "ppo"


@app.callback()
def common(
    settings: Annotated[Path | None, typer.Option(help="Another settings.yaml.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where everything is written; .hrm by default.")] = None,
) -> None:
    # Child processes (the service, Prefect) must see the same settings, so they travel in the environment.
    configure_logging("WARNING")
    if settings is not None:
        os.environ["HRM_SETTINGS"] = str(settings.resolve())
    if state_dir is not None:
        os.environ["HRM_PATHS__STATE_DIR"] = str(state_dir.resolve())


@app.command()
def migrate(data: Data = None, preset: Preset = None, seed: Seed = 0, as_json: AsJson = False) -> None:
    """Run the whole migration: baseline, training, validation, rollout, deployment. Resumes after a kill."""
    from flows.migration import run_migration
    from flows.outcome import print_outcome

    result = run_migration(_settings(preset), existing(data), seed=seed)
    print_outcome(result)
    if as_json:
        answer(result.to_dict(), as_json)
    raise typer.Exit(result.exit_code)


@app.command()
def train(
    algorithm: Annotated[Algorithm, typer.Option(help="Which agent.")] = Algorithm.hrm,
    data: Data = None,
    preset: Preset = None,
    version: Annotated[str | None, typer.Option(help="Version to publish; by default the time of day.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train one agent, publish it to the model store and say how it does on held-out sessions."""
    from flows.train import train_and_publish

    trained = train_and_publish(_settings(preset), algorithm.value, existing(data), seed=seed, version=version)
    answer(trained, as_json)


@app.command()
def finetune(
    checkpoint: Annotated[Path, typer.Argument(help="Folder written by `hrm train`; give its preset, data and seed.")],
    data: Data = None,
    preset: Preset = None,
    version: Annotated[str | None, typer.Option(help="Version to publish; by default the time of day.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Stage B: let a trained HRM learn on from rewards (PPO), publish it, and compare both on held-out sessions."""
    from flows.fine_tuning import fine_tune_and_publish

    answer(fine_tune_and_publish(checkpoint, _settings(preset), existing(data), seed=seed, version=version), as_json)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder written by HRMAgent.save_model or `hrm train`.")],
    version: Annotated[str, typer.Option(help="Version to publish as hrm/<version>.")],
    storage: Annotated[Format, typer.Option("--format", help="How it is stored; auto: the fastest here.")] = "auto",
    portable: Annotated[bool, typer.Option("--portable", help="Add the whole decision in one file.")] = False,
    preset: Preset = None,
    as_json: AsJson = False,
) -> None:
    """Export a checkpoint to ONNX and publish it, if it decides as the checkpoint does. `hrm train` does so itself."""
    from flows.train import require_name
    from flows.variants import publish_variant
    from hrm.checkpoint import load_model

    require_name(version)
    settings = _settings(preset)
    manifest = publish_variant(
        load_model(checkpoint),
        settings,
        store=settings.paths.state_dir / "models",
        name="hrm",
        version=version,
        metrics={},
        dataset_digest="unknown",
        storage=storage,
        portable=portable,
    )
    answer({"model": f"hrm/{version}", "format": manifest.storage, **manifest.metrics}, as_json)


@app.command()
def serve(
    champion: Annotated[
        str | None, typer.Option(help="First champion; later the rollout state says who decides.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Another port than serving.port; 0 picks a free one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that answer; serving.workers by default.")] = None,
    book_model: Annotated[str | None, typer.Option(help="Model of books to load, as name/version.")] = None,
) -> None:
    """Run the inference service until Ctrl-C."""
    from serving.__main__ import run

    if port is not None:
        os.environ["HRM_SERVING__PORT"] = str(port)
    if workers is not None:
        os.environ["HRM_SERVING__WORKERS"] = str(workers)
    if book_model is not None:
        os.environ["HRM_SERVING__BOOK_MODEL"] = book_model
    configure_service_logging()
    run(_settings(None), champion=champion)


@trade_commands.app.callback(invoke_without_command=True)
def trade(  # noqa: PLR0913, PLR0917 - a command's options
    context: typer.Context,
    data: Data = None,
    seed: Seed = 0,
    sessions: Annotated[int, typer.Option(min=1, help="Synthetic sessions to trade, after a warm-up.")] = 10,
    bars_per_s: Annotated[float | None, typer.Option(help="Replay speed; as fast as possible by default.")] = None,
    live: live_commands.IsLive = False,
    real_orders: live_commands.RealOrders = False,
    confirm: live_commands.Confirm = None,
    as_json: AsJson = False,
) -> None:
    """Trade on paper: replay bars, or --live at Fyers' prices. Asks the running service, continues after a crash."""
    if context.invoked_subcommand is not None:
        return
    if live:
        live_commands.trade_live(
            _settings(None), existing(data), real_orders=real_orders, confirm=confirm, as_json=as_json
        )
        return
    from dataclasses import asdict

    from flows.asking import ask, service_url
    from serving import calls
    from serving.local_token import read_or_create_token
    from trading.costs import flat_costs, nse_index_future_costs
    from trading.dataset import WARM_UP_SESSIONS
    from trading.files import load_market_bars
    from trading.paper_replay import run_paper
    from trading.service import DecisionClient
    from trading.synthetic import simulate

    settings = _settings(None)
    path = existing(data)
    if path is None:
        bars = simulate(settings.synthetic_market, sessions=sessions + WARM_UP_SESSIONS, seed=seed).bars
        cost, first_session = flat_costs(settings.trading.cost_bps), WARM_UP_SESSIONS
    else:
        bars, cost = load_market_bars(path), nse_index_future_costs(settings.trading.slippage_bps)
        first_session = 0
    if ask(settings, calls.rollout()).champion is None:
        raise ConfigError("the service has no champion yet; `hrm migrate` or `hrm rollout start` names one")
    with DecisionClient(service_url(settings), read_or_create_token(settings.paths.state_dir)) as service:
        report = run_paper(bars, settings, service, cost=cost, bars_per_s=bars_per_s, first_session=first_session)
    if 0 < report.decisions == report.held_without_answer:
        fail("no_decisions", f"the service decided none of {report.decisions} bars; see its log")
    if report.decisions == 0:
        typer.echo(
            "nothing new to trade: the ledger is ahead, or there are no more bars than a model looks at; "
            "give later bars, more --sessions or another --state-dir",
            err=True,
        )
    answer(asdict(report), as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine lacks and how to get it: packages, GPU, disk, port, models, broker, tools."""
    from rich.console import Console

    from flows.doctor import examine, screen

    findings = examine(_settings(None))
    if as_json:
        answer(findings, as_json)
    else:
        Console().print(screen(findings))
    raise typer.Exit(0 if findings["healthy"] else 2)


def main() -> None:
    """Run a command and turn what went wrong into one line and an exit code."""
    try:
        code = app(standalone_mode=False)  # a command's typer.Exit comes back as its code, Ctrl-C as 130
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except (typer.Abort, KeyboardInterrupt):
        fail("interrupted", "interrupted; what was finished is kept, the same command continues", INTERRUPTED)
    except HrmSystemError as error:
        fail(error.code, str(error))
    except OSError as error:
        fail(*disk_problem(error))
    except ModuleNotFoundError as error:  # an environment with the serving extra alone, say
        fail("missing_extra", f"{error.name} is not installed; this command needs: pip install 'hrm-trading[flows]'")
    except ClickException as error:
        fail("usage", error.format_message() or "name a command; the ones there are stand above")


def _settings(preset: str | None) -> Settings:
    return load_settings(preset=preset)


if __name__ == "__main__":
    main()
