"""One ONNX graph in onnxruntime: opened, checked against its manifest, run, stopped."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from core.errors import ModelError
from core.manifest import ModelManifest
from core.settings import Serving
from serving.reasoning import Arrays
from serving.store import StoredModel

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_OPTIONS = {"use_tf32": "0"}  # float32 is float32: models were judged so
GPU_PROVIDERS = {CUDA, "TensorrtExecutionProvider"}
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
        self._session, self.captures = _open_session(model, serving)
        self._options = ort.RunOptions()
        if self.captures:
            self._options.add_run_config_entry("gpu_graph_id", "-1")  # plain runs are not captured
        self._stopped = False
        self.provider: str = self._session.get_providers()[0]
        self.row_outputs = {node.name: tuple(node.shape[1:]) for node in self._session.get_outputs()}
        self._check(expected_inputs(model.manifest))

    def run(self, feeds: Arrays) -> Arrays:
        """Outputs by name; whether they are numbers is for the caller to see. Raises ModelError when the run fails."""
        try:
            values = self._session.run(self.outputs, feeds, self._options)
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            raise ModelError(f"{self.id}: the model failed to run: {error}", code="inference_failed") from error
        return dict(zip(self.outputs, values, strict=True))

    def run_bound(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        """Run on what is bound, captured under the options' `gpu_graph_id`. Raises ModelError."""
        if self._stopped:
            raise ModelError(f"{self.id}: the model was stopped", code="inference_failed")
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # as above
            raise ModelError(f"{self.id}: the model failed to run: {error}", code="inference_failed") from error

    def binding(self) -> ort.IOBinding:
        return self._session.io_binding()

    def on_device(self, array: NDArray[Any]) -> ort.OrtValue:
        """A copy where the session runs."""
        device = "cuda" if self.provider in GPU_PROVIDERS else "cpu"
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)

    def stop(self) -> None:
        """Runs in flight end with ModelError at their next node, and so does every later run."""
        self._stopped = True
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


def _open_session(model: StoredModel, serving: Serving) -> tuple[ort.InferenceSession, bool]:
    """The session, and whether its runs can be captured as CUDA graphs."""
    # Integers are exact on a CPU; elsewhere they would be computed in floats, and depend on batch mates.
    wanted = (CPU,) if model.manifest.storage == "static_int8" else serving.providers
    providers = working_providers(wanted)
    if not providers:
        raise ModelError(
            f"none of serving.providers {list(serving.providers)} works here; add CPUExecutionProvider",
            code="no_provider",
        )
    if GPU_PROVIDERS & set(providers):
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
            ort.preload_dlls()  # CUDA libraries that came as wheels
        if providers[0] == CUDA:
            with contextlib.suppress(ModelError):  # a graph with nodes on the CPU cannot be captured
                captured = _session(model, serving, [(CUDA, CUDA_OPTIONS | {"enable_cuda_graph": "1"})])
                return _required(captured, model, serving), captured.get_providers()[0] == CUDA
    opened = [(name, CUDA_OPTIONS) if name == CUDA else name for name in providers]
    return _required(_session(model, serving, opened), model, serving), False


def _session(model: StoredModel, serving: Serving, providers: list[Any]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = serving.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are shared
    options.log_severity_level = 4  # its failures arrive as exceptions
    try:
        return ort.InferenceSession(model.onnx, options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class below Exception
        raise ModelError(
            f"{model.id}: model.onnx does not load: {error}; export it again", code="graph_invalid"
        ) from error


def _required(session: ort.InferenceSession, model: StoredModel, serving: Serving) -> ort.InferenceSession:
    """The session, unless it must run on the first provider that is named and does not."""
    got, wanted = session.get_providers()[0], serving.providers[0]
    if serving.strict_provider and got != wanted:
        raise ModelError(
            f"{model.id} ({model.manifest.storage}): runs on {got}, not on {wanted}; mend the driver and its libraries "
            f"(`hrm doctor`), export another format than static_int8, or set serving.strict_provider to false",
            code="provider_unavailable",
        )
    return session


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
