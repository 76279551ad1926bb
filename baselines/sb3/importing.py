"""From an archive to a published version: read, fit to an observation schema, checked, published.

An archive knows shapes, not what its numbers mean. Those of our schema (W bars of F features, A account features) are
taken to be ours:

    Box (W, F)               bars
    Box (W * F + A,)         bars, then account
    Dict {bars, account}     both, in the order of the Dict

Anything else can be published only as `generic`, with features that have numbers for names: the service can serve it
to whoever makes such observations, our own feature code cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from baselines.export import publish_checked
from baselines.sb3.actions import Actions, actions_of
from baselines.sb3.archive import TRUST, read_archive, refused
from baselines.sb3.description import ACTIVATIONS, Description, Shape, describe
from baselines.sb3.normalization import Normalization, read_normalization
from baselines.sb3.onnx_file import to_onnx
from baselines.sb3.policy import ImportedPolicy, Layout, build_policy
from core.manifest import IMPORTED, ModelManifest
from core.observation import ObservationSchema

POSITION = "position"  # the account feature on which the meaning of an action depends
NUMBERS = 1_000_000  # of one observation


@dataclass(frozen=True)
class Options:
    """What an archive does not say."""

    actions: tuple[str, ...] = ()  # names of its choices in order
    quantities: tuple[float, ...] = ()  # units
    activation: str | None = None
    dead_zone: float = 0.33
    generic: bool = False


@dataclass(frozen=True, eq=False)
class Source:
    """What an archive was found to hold."""

    description: Description
    weights: Mapping[str, Tensor]
    normalization: Normalization | None
    sha256: str


def read_source(archive: Path, normalization: Path | None) -> Source:
    """Without executing anything. Raises ModelError for what cannot be read so."""
    found = read_archive(archive)
    statistics = read_normalization(normalization) if normalization else None
    return Source(describe(found.data), found.weights, statistics, found.sha256)


def imported(
    source: Source, schema: ObservationSchema, options: Options, *, quantity_max: float
) -> tuple[ImportedPolicy, ObservationSchema]:
    """The policy, and the schema of what it observes: `schema` where it fits. Raises ModelError where nothing does."""
    described = source.description
    inputs = _size(described)
    layout, schema = _fitted(described, schema, generic=options.generic)
    activation = options.activation or described.activation
    if activation is None or activation not in ACTIVATIONS.values():
        named = ", ".join(ACTIVATIONS.values())
        raise refused(f"its activation is {activation or 'not known'}; name one with --activation: {named}{TRUST}")
    statistics = source.normalization
    policy = build_policy(
        source.weights,
        inputs=inputs,
        activation=activation,
        layout=layout,
        actions=_actions(described, options, quantity_max),
        normalization=None if statistics is None else statistics.vectors(described.observation),
    )
    return policy, schema


def publish_imported(
    policy: ImportedPolicy, schema: ObservationSchema, *, store: Path, name: str, version: str, sha256: str
) -> ModelManifest:
    """Publish as `<store>/<name>/<version>`. Raises ModelError, publishing nothing, as baselines.export does."""
    return publish_checked(
        to_onnx(policy, schema),
        policy,
        schema,
        store=store,
        name=name,
        version=version,
        quantity_max=policy.actions.quantity_max,
        metrics={},
        dataset_digest=IMPORTED + sha256,
    )


def _actions(described: Description, options: Options, quantity_max: float) -> Actions:
    return actions_of(
        described.action,
        masked=described.masked,
        quantity_max=quantity_max,
        names=options.actions,
        quantities=options.quantities,
        dead_zone=options.dead_zone,
    )


def _fitted(described: Description, ours: ObservationSchema, *, generic: bool) -> tuple[Layout, ObservationSchema]:
    bars, account = (ours.window, len(ours.bar_features)), (len(ours.account_features),)
    known: dict[tuple[tuple[str, Shape], ...], tuple[str, ...]] = {
        (("", bars),): ("bars",),
        (("", (bars[0] * bars[1] + account[0],)),): ("bars", "account"),
        (("bars", bars), ("account", account)): ("bars", "account"),
        (("account", account), ("bars", bars)): ("account", "bars"),
    }
    parts = known.get(described.observation)
    if parts is not None and not generic:
        return Layout(parts, ours.account_features.index(POSITION)), ours
    if not generic:
        raise refused(
            f"its observation is {_in_words(described)}; expected is a Box {bars} of bars, a Box "
            f"{(bars[0] * bars[1] + account[0],)} of bars and account, or a Dict of bars {bars} and account {account}; "
            f"with --generic it can be served, though not backtested or traded here"
        )
    return _generic(described)


def _generic(described: Description) -> tuple[Layout, ObservationSchema]:
    """Bars of numbered features: of a flat observation one, so many rows of it."""
    name, shape = described.observation[0]
    rows, features = (*shape, 1)[:2]
    if len(described.observation) > 1 or name or len(shape) > 2 or rows < 2 or not features or rows > 65_536:
        raise refused(f"its observation is {_in_words(described)}; --generic takes a Box of two rows or more")
    names = tuple(f"feature_{number}" for number in range(features))
    schema = ObservationSchema(window=rows, patch=1, bar_features=names, account_features=(POSITION,))
    return Layout(("bars",), 0), schema


def _size(described: Description) -> int:
    total = 0
    for _, shape in described.observation:
        numbers = 1
        for length in shape:
            numbers *= length
        total += numbers
    if not 0 < total <= NUMBERS:
        raise refused(f"its observation is {_in_words(described)}, {total:,} numbers")
    return total


def _in_words(described: Description) -> str:
    parts = [f"{name} {shape}".strip() for name, shape in described.observation]
    return f"a Box {parts[0]}" if described.observation[0][0] == "" else f"a Dict of {' and '.join(parts)}"
