"""A torch module as an ONNX file, without the exporter's chatter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ModelError

OPSET = 23  # RMSNormalization and RotaryEmbedding


def traced(module: nn.Module, example: Mapping[str, Tensor], outputs: Sequence[str]) -> bytes:
    """The ONNX file of `module` called with `example`, whose names become the graph's and come in forward's order.

    The first axis of every tensor that has one is a dynamic batch; the example needs at least two rows, because the
    exporter takes an axis of one for a constant. Raises ModelError if it cannot be made.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module.eval(),
                tuple(example.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(example),
                output_names=list(outputs),
                dynamic_shapes=tuple({0: batch} if tensor.ndim else {} for tensor in example.values()),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ModelError(f"the model cannot be exported to ONNX: {error}", code="export_failed") from error
    assert program is not None  # noqa: S101 - dynamo=True always returns a program
    return bytes(_without_origins(program.model_proto).SerializeToString())


def _without_origins(file: Any) -> Any:
    """The exporter notes on every node the source lines it came from: as much as a small model, and private."""
    for part in (file, file.graph, *file.graph.node, *file.graph.value_info):
        part.ClearField("metadata_props")
    return file


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress and deprecation chatter, off; its exceptions pass."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
