"""Who decides when the desk is started: whoever decided before, else a published incumbent, else a rule.

A model that nobody has tested never becomes champion here: an HRM comes by `hrm migrate` or `hrm rollout start` only.
"""

from __future__ import annotations

from pathlib import Path

from core.files import sha256_hex
from core.manifest import IMPORTED, publish
from core.settings import Settings
from delivery.state_database import place_of
from delivery.store import RolloutStore
from flows.drill_models import golden
from flows.trading_day_models import NEVER, policy_graph
from serving.store import list_versions
from trading.features import schema

RULE, RULE_SPAN = "rule/signal", 64  # bars over which it learns what the signal is worth
INCUMBENT = "ppo"


def first_champion(settings: Settings) -> tuple[str, bool]:
    """The model that is to decide, and whether the rollout's state names it already (then the service knows).

    On a first start without any model the rule is published: it takes milliseconds, and trades on paper at once.
    """
    champion = _champion(settings)
    if champion is not None:
        return champion, True
    store = settings.paths.state_dir / "models"
    rows = [row for row in list_versions(store) if row["problem"] is None]
    incumbents = [row for row in rows if row["algorithm"] == INCUMBENT and str(row["id"]).startswith(f"{INCUMBENT}/")]
    if incumbents:
        return str(max(incumbents, key=lambda row: str(row["created_at"]))["id"]), False
    if RULE not in {row["id"] for row in rows}:
        publish_rule(settings, store)
    return RULE, False


def publish_rule(settings: Settings, store: Path) -> None:
    """Follow the market's signal by what it has lately been worth. A migration takes it for an imported incumbent."""
    observation = schema(settings.observation)
    graph = policy_graph(observation, RULE_SPAN, NEVER)
    name, version = RULE.split("/")
    publish(
        store,
        {"model.onnx": graph, "golden.npz": golden(graph, observation)},
        name=name,
        version=version,
        algorithm="ppo",  # the form of its graph
        parameters=4 * len(observation.account_features),
        observation=observation,
        quantity_max=settings.trading.max_quantity,
        dataset_digest=f"{IMPORTED}{sha256_hex(graph)}",
    )


def _champion(settings: Settings) -> str | None:
    store = RolloutStore(place_of(settings), settings.rollout)
    try:
        return store.read().champion
    finally:
        store.close()
