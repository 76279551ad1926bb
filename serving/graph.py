"""One ONNX graph in onnxruntime: opened, checked against its manifest, run, stopped."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from core.errors import ModelError
from core.manifest import ModelManifest
from core.settings import Serving
from serving.reasoning import Arrays
from serving.store import StoredModel

GPU_PROVIDERS = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
POLICY_OUTPUTS = ("action_logits", "log_quantity", "value")
REASONING_OUTPUTS = ("q_halt", "q_continue", "z_H_next", "z_L_next")
OUTPUTS = {
    "ppo": POLICY_OUTPUTS,
    "hrm": (*POLICY_OUTPUTS, *REASONING_OUTPUTS),
    "hrm_book": ("action_logits", *REASONING_OUTPUTS),
}


class Graph:
    """A session whose inputs and outputs are those of the manifest. Thread-safe."""

    def __init__(self, model: StoredModel, serving: Serving) -> None:
        self.id = model.id
        self.outputs = list(OUTPUTS[model.manifest.algorithm])
        self._session = _open_session(model, serving)
        self._options = ort.RunOptions()
        self.provider: str = self._session.get_providers()[0]
        self._check(expected_inputs(model.manifest))

    def run(self, feeds: Arrays) -> Arrays:
        """Outputs by name; whether they are numbers is for the caller to see. Raises ModelError when the run fails."""
        try:
            values = self._session.run(self.outputs, feeds, self._options)
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            raise ModelError(f"{self.id}: the model failed to run: {error}", code="inference_failed") from error
        return dict(zip(self.outputs, values, strict=True))

    def stop(self) -> None:
        """Runs in flight end with ModelError at their next node, and so does every later run."""
        self._options.terminate = True

    def _check(self, expected: dict[str, tuple[int, ...]]) -> None:
        inputs = {node.name: list(node.shape) for node in self._session.get_inputs()}
        fits = inputs.keys() == expected.keys() and all(_fits(inputs[name], shape) for name, shape in expected.items())
        missing = set(self.outputs) - {node.name for node in self._session.get_outputs()}
        if not fits or missing:
            raise ModelError(
                f"{self.id}: graph inputs {inputs} do not fit the manifest's rows {expected}, or outputs "
                f"{sorted(missing)} are missing; export the model again",
                code="graph_mismatch",
            )


def working_providers(wanted: Sequence[str]) -> list[str]:
    """The wanted providers this machine can have; asking for a GPU where none is makes onnxruntime shout."""
    has_gpu = Path("/dev/nvidiactl").exists()
    available = set(ort.get_available_providers())
    return [name for name in wanted if name in available and (has_gpu or name not in GPU_PROVIDERS)]


def _open_session(model: StoredModel, serving: Serving) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = serving.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are shared
    options.log_severity_level = 4  # its failures arrive as exceptions
    providers = working_providers(serving.providers)
    if GPU_PROVIDERS & set(providers):
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
            ort.preload_dlls()  # CUDA libraries that came as wheels
    if not providers:
        raise ModelError(
            f"none of serving.providers {list(serving.providers)} works here; add CPUExecutionProvider",
            code="no_provider",
        )
    try:
        return ort.InferenceSession(model.onnx, options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class below Exception
        raise ModelError(
            f"{model.id}: model.onnx does not load: {error}; export it again", code="graph_invalid"
        ) from error


def expected_inputs(manifest: ModelManifest) -> dict[str, tuple[int, ...]]:
    inputs = manifest.observation.row_shapes
    if manifest.algorithm != "ppo":
        inputs |= {
            "z_H": manifest.carry.get("z_H", (0, 0)),
            "z_L": manifest.carry.get("z_L", (0, 0)),
            "reset": (),
        }
    return inputs


def _fits(graph_shape: list[int | str | None], row_shape: tuple[int, ...]) -> bool:
    """A dynamic batch axis first, then the row; a graph may leave any dimension symbolic."""
    if len(graph_shape) != len(row_shape) + 1 or isinstance(graph_shape[0], int):
        return False
    return all(not isinstance(dim, int) or dim == size for dim, size in zip(graph_shape[1:], row_shape, strict=True))
