"""A model whose depth its question decides, and questions of known depth: random weights, the real exported segment.

How long trained models think is a matter of their training; a load needs depths that are known. So the weights of the
recurrence are halved (which makes it contract, and its segments tell the same story), one feature of the account is
+-MARKER, and the halting head is fitted, by ridge regression, to halt exactly where it is positive. The minimum of
core.halting does the rest: complexity asks for 1, 2 or 3 segments.

    depth 1, 2, 3      marker +, complexity of that minimum
    full depth         marker -

Shapes: n questions, W window, F bar features, A account features, S segments, h width of z_H.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ModelError
from core.halting import minimum_segments
from core.manifest import ModelManifest, Storage
from core.observation import ObservationSchema
from core.settings import Settings
from flows.variants import storage_within_limit
from serving.engine import Engine
from serving.store import load_version
from trading.features import schema

if TYPE_CHECKING:  # torch takes seconds to import, and only the export needs it
    import torch

    from hrm.model import HierarchicalReasoningModel

MARKER = 100.0  # far above any feature: one account token tells the depth, whatever the market
CONTRACTION = 0.5
ROWS = 64  # of the fit
RIDGE = 1e-3  # of the fit: there are no more rows than weights
LOGIT = 10.0  # of the fitted head, at either depth
COMPLEXITIES = (0.0, 0.5, 1.0)  # ask for the smallest minimum, one more, two more

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Questions:
    """bars [n, W, F], account [n, A], complexity [n], position [n], and how deep each is thought about, depth [n]."""

    bars: Floats
    account: Floats
    complexity: Floats
    position: NDArray[np.int64]
    depth: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.depth)


def publish_model(settings: Settings, store: Path, storage: Storage | None) -> ModelManifest:
    """Export as hrm/<storage> and prove its depths; by default in fp32, or fp16 where NFR1.4 asks for it.

    Raises ModelError if the stored model does not think as long as its questions say.
    """
    from hrm.export import export_model

    model = _model(settings)
    storage = storage or storage_within_limit(model.parameter_count, settings)
    bars, account = _rows(model.schema, _markers(ROWS), seed=2)
    manifest = export_model(
        model,
        store=store,
        name="hrm",
        version=storage.replace("_", "-"),
        settings=settings,
        metrics={},
        dataset_digest="none",
        storage=storage,
        observed={"bars": bars, "account": account} if storage == "static_int8" else None,
    )
    _prove(manifest, store, settings)
    return manifest


def questions(manifest: ModelManifest, depths: tuple[int, ...], count: int, seed: int = 0) -> Questions:
    """`count` questions with equal parts of `depths` (1, 2, 3 or the maximum), in random order."""
    rule = manifest.halting
    if rule is None:
        raise ModelError(f"{manifest.name}: thinks in one pass; depth is an HRM's", code="manifest_invalid")
    random = np.random.default_rng(seed)
    depth = random.permutation(np.resize(depths, count))
    minimum = {int(minimum_segments(np.float32(each), rule)): each for each in reversed(COMPLEXITIES)}
    full = np.array([each not in minimum for each in depth])
    if set(depth[full]) - {rule.max_segments}:
        raise ModelError(f"depths must be in {sorted(minimum)} or {rule.max_segments}, got {depths}", code="usage")
    bars, account = _rows(manifest.market, np.where(full, -1.0, 1.0), seed)
    return Questions(
        bars=bars,
        account=account,
        complexity=np.array([minimum.get(int(each), 0.0) for each in depth], dtype=np.float32),
        position=random.integers(-1, 2, count),
        depth=depth,
    )


def _markers(count: int) -> NDArray[np.float64]:
    """As many +1 as -1."""
    return np.resize((1.0, -1.0), count)


def _rows(seen: ObservationSchema, marker: NDArray[np.float64], seed: int) -> tuple[Floats, Floats]:
    """Random bars [n, W, F] and accounts [n, A] with the marker's signs [n]."""
    random, count = np.random.default_rng(seed), len(marker)
    account = random.standard_normal((count, len(seen.account_features)), dtype=np.float32)
    account[:, 0] = MARKER * marker
    return random.standard_normal((count, seen.window, len(seen.bar_features)), dtype=np.float32), account


def _model(settings: Settings) -> HierarchicalReasoningModel:
    from torch import nn

    from hrm.model import HierarchicalReasoningModel

    hrm, seen = settings.hierarchical_reasoning_model, schema(settings.observation)
    model = HierarchicalReasoningModel(hrm, seen, settings.trading.max_quantity, seed=0).eval()
    for layer in model.recurrence.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data *= CONTRACTION
    _teach_when_to_halt(model)
    return model


def _teach_when_to_halt(model: HierarchicalReasoningModel) -> None:
    """q_halt = +LOGIT where the marker is positive and -LOGIT where it is not, after any segment; q_continue = 0."""
    import torch

    marker = _markers(ROWS)
    bars, account = _rows(model.schema, marker, seed=0)
    seen = _decision_tokens(model, torch.from_numpy(bars), torch.from_numpy(account)).double()  # [S, B, h]
    wanted = torch.from_numpy(LOGIT * marker).repeat(len(seen))
    inputs = torch.cat((seen.flatten(0, 1), torch.ones(len(wanted), 1)), dim=1)
    shrunk = RIDGE * len(wanted) * torch.eye(inputs.shape[1])
    fitted = torch.linalg.solve(inputs.T @ inputs + shrunk, inputs.T @ wanted).float()
    with torch.no_grad():
        model.q_head.weight.zero_()
        model.q_head.bias.zero_()
        model.q_head.weight[0], model.q_head.bias[0] = fitted[:-1], fitted[-1]


def _decision_tokens(model: HierarchicalReasoningModel, bars: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
    """z_H at the decision token after each segment, [S, B, h]."""
    import torch

    z_H, z_L = model.recurrence.initial_state(len(bars))
    seen = []
    with torch.inference_mode():
        x = model.embed(bars, account)
        for _ in range(model.settings.act.max_segments):
            z_H, z_L = model.recurrence(z_H, z_L, x)
            seen.append(z_H[:, 0])
    return torch.stack(seen).clone()


def _prove(manifest: ModelManifest, store: Path, settings: Settings) -> None:
    model_id, rule = f"{manifest.name}/{manifest.version}", manifest.halting
    assert rule is not None  # noqa: S101 - an exported HRM has one; for the type checker
    asked = questions(manifest, (1, 2, 3, rule.max_segments), 2 * ROWS, seed=1)
    engine = Engine(load_version(store, model_id, size_limit_mb=1e3), settings.serving)
    found = engine.decide(asked.bars, asked.account, asked.complexity, asked.position)
    wrong = int((found.segments != asked.depth).sum())
    if wrong:
        raise ModelError(
            f"{model_id}: {wrong} of {len(asked)} questions were thought about longer or shorter than they say; "
            f"raise MARKER or lower CONTRACTION",
            code="depth_unknown",
        )


def choices(engine: Engine, asked: Questions) -> dict[str, Any]:
    """What `engine` itself answers, by number of the question: [action, segments]."""
    found = engine.decide(asked.bars, asked.account, asked.complexity, asked.position)
    pairs = zip(found.action.tolist(), found.segments.tolist(), strict=True)
    return {str(which): list(pair) for which, pair in enumerate(pairs)}
