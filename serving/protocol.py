"""A loaded model as the Open Inference Protocol 2 (KServe, Triton) sees it: a name, versions, tensors in and out.

inputs   bars FP32 [B, W, F], account FP32 [B, A], complexity FP32 [B], position INT64 [B]
outputs  action INT64 [B], quantity FP64 [B], probabilities FP64 [B, 5], value FP64 [B], segments INT64 [B],
         halt_reason BYTES [B]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi.exceptions import RequestValidationError
from starlette.types import Receive, Scope, Send

from core.actions import N_ACTIONS
from core.errors import DataError, ModelError
from core.observation import ObservationSchema
from serving.batcher import Batcher, Observation, Run
from serving.plain import PlainRoute
from serving.problems import answer, describe_invalid, problem
from serving.question import require_bounded
from serving.reasoning import concatenate
from serving.schemas import MAX_BATCH
from serving.schemas_v2 import InferRequest
from serving.service import Service
from serving.store import list_versions
from serving.tensors import Array

MISSING_CODES = {"model_not_loaded", "model_not_found", "model_id_invalid"}
INPUTS = {"bars": "FP32", "account": "FP32", "complexity": "FP32", "position": "INT64"}
OUTPUTS = {
    "action": "INT64", "quantity": "FP64", "probabilities": "FP64",
    "value": "FP64", "segments": "INT64", "halt_reason": "BYTES",
}  # fmt: skip


class ProtocolRoute(PlainRoute):
    """Failures as the protocol has them: 400 for what breaks it, 404 for a model that is not there."""

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().serve(scope, receive, send)
        except RequestValidationError as error:
            await answer(describe_invalid(error.errors(), 400))(scope, receive, send)
        except DataError as error:
            await problem(400, error.code, str(error))(scope, receive, send)
        except ModelError as error:
            if error.code not in MISSING_CODES:
                raise
            await problem(404, error.code, str(error))(scope, receive, send)


def named(service: Service, name: str, version: str | None = None) -> Batcher:
    """The loaded model of that name: this version, else the one that decides now, else the newest. ModelError."""
    live = service.live
    if version is not None:
        model = live.model(f"{name}/{version}")
        if model is None:
            raise not_loaded(f"{name}/{version}")
        return model
    champion = live.model(live.state.champion)
    if champion is not None and champion.engine.manifest.name == name:
        return champion
    models = loaded(service, name)
    if not models:
        raise not_loaded(name)
    return models[-1]


def loaded(service: Service, name: str) -> list[Batcher]:
    """Every loaded version of it, the oldest first."""
    models = [model for model in service.live.models.values() if model.engine.manifest.name == name]
    return sorted(models, key=lambda model: model.engine.manifest.created_at)


def not_loaded(what: str) -> ModelError:
    return ModelError(
        f"{what} is not loaded; POST /v2/repository/index says what is, .../load loads", code="model_not_loaded"
    )


def newest_published(service: Service, name: str) -> str:
    """Id of the newest sound version in the store. Raises ModelError."""
    rows = list_versions(service.settings.paths.state_dir / "models")
    mine = [row for row in rows if row["problem"] is None and str(row["id"]).partition("/")[0] == name]
    if not mine:
        raise ModelError(f"{name}: the store holds no version of it", code="model_not_found")
    return str(max(mine, key=lambda row: str(row["created_at"]))["id"])


def tensors(schema: ObservationSchema) -> dict[str, list[dict[str, Any]]]:
    """`inputs` and `outputs` of the model's metadata; -1 is the batch."""
    shapes: Mapping[str, Sequence[int]] = {**schema.row_shapes, "probabilities": (N_ACTIONS,)}

    def described(kinds: Mapping[str, str]) -> list[dict[str, Any]]:
        return [
            {"name": name, "datatype": datatype, "shape": [-1, *shapes.get(name, ())]}
            for name, datatype in kinds.items()
        ]

    return {"inputs": described(INPUTS), "outputs": described(OUTPUTS)}


def observations(arrays: Mapping[str, Array], request: InferRequest, schema: ObservationSchema) -> list[Observation]:
    """One for each row. Raises DataError for another tensor, type or shape than the model's, or another number."""
    given = {tensor.name: tensor.datatype for tensor in request.inputs}
    if given != INPUTS:
        wanted = ", ".join(f"{name} {datatype}" for name, datatype in INPUTS.items())
        raise DataError(f"inputs: the model takes exactly {wanted}", code="input_mismatch")
    B = arrays["bars"].shape[0]
    if B > MAX_BATCH:
        raise DataError(f"inputs: {B} rows, at most {MAX_BATCH}", code="input_mismatch")
    for name, array in arrays.items():
        shape = (B, *schema.row_shapes.get(name, ()))
        if array.shape != shape:
            raise DataError(f"inputs.{name}: shape {list(array.shape)}, expected {list(shape)}", code="shape_mismatch")
    _require_in_range(arrays)
    columns = (arrays["bars"], arrays["account"], arrays["complexity"].tolist(), arrays["position"].tolist())
    return [Observation(*row) for row in zip(*columns, strict=True)]


def _require_in_range(arrays: Mapping[str, Array]) -> None:
    for name in ("bars", "account"):
        require_bounded(f"inputs.{name}", arrays[name])
    complexity, position = arrays["complexity"], arrays["position"]
    if not ((complexity >= 0) & (complexity <= 1)).all():  # false for NaN
        raise DataError("inputs.complexity: must lie in [0, 1]", code="out_of_range")
    if not ((position >= -1) & (position <= 1)).all():
        raise DataError("inputs.position: must be -1, 0 or 1", code="out_of_range")


def wanted_outputs(request: InferRequest) -> dict[str, bool]:
    """Names in the order asked for, and whether each travels binary. Raises DataError for what there is not."""
    binary = request.parameters.binary_data_output
    if request.outputs is None:
        return dict.fromkeys(OUTPUTS, binary)
    wanted: dict[str, bool] = {}
    for output in request.outputs:
        if output.name not in OUTPUTS or output.name in wanted:
            raise DataError(
                f"outputs.{output.name}: is unknown or given twice; there are {', '.join(OUTPUTS)}",
                code="output_unknown",
            )
        own = output.parameters.binary_data
        wanted[output.name] = binary if own is None else own
    return wanted


def outputs(runs: Sequence[Run]) -> dict[str, Array]:
    """Of runs that all have decisions, one row each."""
    made = concatenate([run.decisions for run in runs if run.decisions is not None])
    return {name: np.asarray(getattr(made, name)) for name in OUTPUTS}
