"""`hrm keys ...`: who may call the service, and whose models it loads. `hrm models`: what is published."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core import signing
from core.errors import ConfigError
from core.settings import load_settings
from flows.options import AsJson
from flows.terminal import answer

if TYPE_CHECKING:
    from serving.keys import ApiKey

app = typer.Typer(no_args_is_help=True, help="API keys of the service, and the keys that models are signed with.")
models_app = typer.Typer(no_args_is_help=True, help="Published models.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, for people.")],
    scope: Annotated[list[str], typer.Option(help="decide, rollout:abort, ...; give it once for each.")],
    expires_days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Valid for so long; else until revoked.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. It is shown now and never again; a running service takes it within two seconds."""
    from serving import keys
    from serving.scopes import Scope

    known = [str(each) for each in Scope]
    if unknown := sorted(set(scope) - set(known)):
        raise ConfigError(f"no scope {', '.join(unknown)}; there are: {', '.join(known)}", code="usage")
    expires_at = keys.lifetime(expires_days) if expires_days else None
    key, text = keys.create(_state_dir(), name, tuple(map(Scope, scope)), expires_at=expires_at)
    answer(_described(key) | {"key": text}, as_json)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Every API key, without its secret, which nobody knows any more."""
    from serving import keys

    found = [_described(key) for key in keys.read(_state_dir())]
    answer({"keys": found} if as_json else {row.pop("id"): row for row in found}, as_json)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="As `hrm keys list` shows it.")], as_json: AsJson = False
) -> None:
    """Let an API key be none any more; a running service refuses it within two seconds."""
    from serving import keys

    answer(_described(keys.revoke(_state_dir(), key_id)) | {"revoked": True}, as_json)


@app.command()
def show(as_json: AsJson = False) -> None:
    """The public key that models published here are signed with: for `hrm keys trust` on another machine."""
    key_id, pem = signing.public_pem(_keys())
    if as_json:
        answer({"key_id": key_id, "public_key": pem.decode()}, as_json)
    else:
        typer.echo(pem.decode(), nl=False)  # alone, so that it can be written to a file


@app.command()
def trust(
    file: Annotated[Path, typer.Argument(help="What `hrm keys show` printed where the models come from.")],
    as_json: AsJson = False,
) -> None:
    """Load models that were signed with this key from now on."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; `hrm keys show > FILE` writes one", code="no_such_file")
    try:
        key_id = signing.trust(file.read_bytes(), _keys())
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}", code=error.code) from None
    answer({"trusted": key_id}, as_json)


@models_app.command()
def sign(
    model: Annotated[str, typer.Argument(metavar="NAME/VERSION", help="As in the store.")], as_json: AsJson = False
) -> None:
    """Vouch for a version that has no signature, or one of somebody unknown, if its files are what it says."""
    from serving.store import sign_version

    settings = load_settings()
    store, limit_mb = settings.paths.state_dir / "models", settings.performance.model_size_limit_mb
    manifest = sign_version(store, model, size_limit_mb=limit_mb)
    answer({"model": model, "files": sorted(manifest.files), "key_id": signing.public_pem(_keys())[0]}, as_json)


@models_app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """What is published here, who decides, and what may not be loaded, with the reason."""
    from delivery.state_database import place_of
    from delivery.store import RolloutStore
    from delivery.transitions import RolloutState
    from serving.store import list_versions

    settings = load_settings()
    place, state = place_of(settings), RolloutState()
    if not isinstance(place, Path) or place.exists():
        with closing(RolloutStore(place, settings.rollout)) as store:
            state = store.read()
    roles = {state.champion: "champion", state.challenger: "challenger", state.fallback: "fallback"}
    rows = {str(row["id"]): row for row in list_versions(settings.paths.state_dir / "models")}
    gone = "not in the store; bring its folder back, or roll back before the service restarts"
    rows |= {name: {"id": name, "problem": gone} for name in roles if name is not None and name not in rows}
    answer({name: row | {"role": roles.get(name)} for name, row in rows.items()}, as_json)


def _described(key: ApiKey) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"mac"})


def _state_dir() -> Path:
    return load_settings().paths.state_dir


def _keys() -> Path:
    return _state_dir() / signing.KEYS
