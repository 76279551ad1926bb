"""`hrm baseline import`: the user's own PPO into the model store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer

from core.errors import ConfigError
from core.manifest import require_free
from core.settings import Settings, load_settings
from flows.options import AsJson
from flows.terminal import answer

if TYPE_CHECKING:  # torch takes seconds to import
    from baselines.sb3.importing import Options, Source

log = structlog.get_logger()
app = typer.Typer(no_args_is_help=True, help="The incumbent: bring your own.")

MODEL = "ppo"


@app.callback()
def commands() -> None:
    """Keeps `import` a command of its own, though it is the only one."""


@app.command("import")
def import_(  # noqa: PLR0913, PLR0917 - options of a command, all by name
    archive: Annotated[Path, typer.Argument(help="What stable-baselines3's PPO.save wrote: agent.zip.")],
    version: Annotated[str | None, typer.Option(help="Publish as ppo/<version>; by default the time of day.")] = None,
    normalization: Annotated[
        Path | None, typer.Option(help="What VecNormalize.save wrote, or an .npz of its statistics.")
    ] = None,
    actions: Annotated[
        str | None, typer.Option(help="What its choices mean, in order: short,flat,long or sell,hold,buy or ours.")
    ] = None,
    quantities: Annotated[
        str | None, typer.Option(help="Units: of each bin in order, or the one it always trades; by default 1.")
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="tanh, relu, elu or leaky_relu, if the archive hides it.")
    ] = None,
    dead_zone: Annotated[float, typer.Option(help="A target position within it means flat.")] = 0.33,
    generic: Annotated[
        bool, typer.Option("--generic", help="Publish it although it observes nothing of ours.")
    ] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Let stable-baselines3 load it: runs the code in it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish a stable-baselines3 PPO as an ONNX model, without unpickling anything of it."""
    units = tuple(_number(word) for word in _words(quantities))
    from baselines.sb3.importing import Options  # after what can be wrong without it: torch takes seconds to import
    from flows.train import require_name

    options = Options(
        actions=_words(actions),
        quantities=units,
        activation=activation,
        dead_zone=dead_zone,
        generic=generic,
    )
    name = require_name(version or f"{datetime.now(UTC):%Y%m%d-%H%M%S}")
    answer(import_and_publish(archive, normalization, options, load_settings(), version=name, trust=trust), as_json)


def import_and_publish(
    archive: Path,
    normalization: Path | None,
    options: Options,
    settings: Settings,
    *,
    version: str,
    trust: bool = False,
) -> dict[str, Any]:
    """Publish as ppo/<version>; what was found in the archive. Raises ModelError, publishing nothing."""
    from baselines.sb3.importing import imported, publish_imported
    from trading.features import schema

    store = settings.paths.state_dir / "models"
    require_free(store / MODEL / version)
    source, loaded = _source(archive, normalization, trust=trust)
    ours = schema(settings.observation)
    policy, observed = imported(source, ours, options, quantity_max=settings.trading.max_quantity)
    if loaded is not None:
        from baselines.sb3.trusted import require_same

        require_same(policy, loaded)
    manifest = publish_imported(policy, observed, store=store, name=MODEL, version=version, sha256=source.sha256)
    return {
        "model": f"{MODEL}/{version}",
        "action_space": str(source.description.action),
        "observation": policy.layout.parts,
        "generic": observed != ours,
        "normalized": source.normalization is not None,
        "parameters": manifest.parameters,
        **manifest.metrics,
    }


def _source(archive: Path, normalization: Path | None, *, trust: bool) -> tuple[Source, Any]:
    """What the archive holds, and with --trust the loaded policy."""
    if not trust:
        from baselines.sb3.importing import read_source

        return read_source(archive, normalization), None
    log.warning("archive_trusted", archive=str(archive), why="--trust", effect="the code in it is executed")
    try:
        from baselines.sb3.trusted import load_source
    except ModuleNotFoundError:
        raise ConfigError(
            "--trust needs stable-baselines3: pip install stable-baselines3 (and sb3-contrib for a MaskablePPO)",
            code="missing_extra",
        ) from None
    return load_source(archive, normalization)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",")) if text else ()


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ConfigError(f"--quantities: {word!r} is no number; write them as 1,2,5", code="usage") from None
