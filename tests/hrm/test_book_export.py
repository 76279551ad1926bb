"""A book's segment in onnxruntime: what torch computes, whoever shares the batch, and actions that lead to targets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hrm_planted import HRM, settings

from core.actions import ACTION_OF, LEGAL, TARGET_OF
from core.errors import ModelError
from core.files import sha256_hex
from core.manifest import Storage
from core.observation import BookSchema
from core.settings import Settings
from hrm.book import BookModel
from hrm.book_export import BookSegment, action_logits, export_book
from hrm.inference import laid_out
from hrm.segment import PARITY_LIMIT, golden_file, max_abs_error, onnx_file, random_inputs
from hrm.storage import encode, rounded

SHALLOW = {
    f"{HRM}ARCHITECTURE__POSITIONS": "none",
    f"{HRM}HIERARCHICAL__N_CYCLES": "1",
    f"{HRM}HIERARCHICAL__T_TIMESTEPS": "1",
    f"{HRM}ACT__MAX_SEGMENTS": "16",
}
K, FACTORS = 5, 2


def of_a_set() -> Settings:
    return settings(SHALLOW)


def segment_of(instruments: int = K, seed: int = 0) -> BookSegment:
    model = BookModel(of_a_set().hierarchical_reasoning_model, instruments, FACTORS, seed=seed)
    return BookSegment(model.eval())


@pytest.fixture(scope="module")
def segment() -> BookSegment:
    return segment_of()


@pytest.fixture(scope="module")
def file(segment: BookSegment) -> bytes:
    return onnx_file(BookSegment(laid_out(segment.model)))


def run(file: bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_the_graph_has_the_promised_names_and_dynamic_rows(segment: BookSegment, file: bytes) -> None:
    graph = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [node.name for node in graph.get_inputs()] == ["instruments", "limits", "z_H", "z_L", "reset"]
    assert [node.name for node in graph.get_outputs()] == list(segment.outputs)
    assert {node.shape[0] for node in graph.get_inputs()} == {"batch"}
    assert graph.get_outputs()[0].shape == ["batch", K, 5]


def test_onnxruntime_computes_what_torch_does(segment: BookSegment, file: bytes) -> None:
    assert 0 < max_abs_error(segment, file) <= PARITY_LIMIT


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_storing_it_in_fewer_bits_loses_nothing_that_rounding_had_not_lost(
    segment: BookSegment, file: bytes, storage: Storage
) -> None:
    coarse = BookSegment(rounded(segment.model, storage).eval())
    stored = encode(file, storage)
    assert len(stored) < len(file)
    assert 0 < max_abs_error(coarse, stored) <= PARITY_LIMIT
    assert max_abs_error(segment, stored) > 1e-6  # it was lossy


def test_a_book_is_computed_bit_by_bit_alike_whoever_shares_its_batch(segment: BookSegment, file: bytes) -> None:
    feeds = random_inputs(segment, rows=9, seed=3)
    feeds["instruments"][1:] *= 50.0
    together = run(file, feeds)
    for rows in ([0], [0, 4], [8, 0, 3], [5, 6, 7, 8, 0]):
        part = run(file, {name: array[rows] for name, array in feeds.items()})
        for name, array in together.items():
            np.testing.assert_array_equal(part[name], array[rows], err_msg=name)


def test_the_order_of_instruments_turns_the_answer_and_nothing_else(segment: BookSegment, file: bytes) -> None:
    feeds = random_inputs(segment, rows=4, seed=1) | {"reset": np.ones(4, np.bool_)}
    order = np.array([3, 0, 4, 1, 2])
    turned = run(file, feeds | {"instruments": feeds["instruments"][:, order]})
    straight = run(file, feeds)
    np.testing.assert_allclose(turned["action_logits"], straight["action_logits"][:, order], atol=1e-4)
    np.testing.assert_allclose(turned["q_halt"], straight["q_halt"], atol=1e-4)


def test_the_logit_of_a_legal_action_is_that_of_the_target_it_leads_to() -> None:
    logits = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    for position in (-1, 0, 1):
        by_action = action_logits(logits, torch.full((3, 4), float(position)))
        for action in np.flatnonzero(LEGAL[position + 1]):
            target = TARGET_OF[position + 1, action]
            torch.testing.assert_close(by_action[..., action], logits[..., target + 1])
        masked = torch.where(torch.from_numpy(LEGAL[position + 1]), by_action, -torch.inf)
        expected = ACTION_OF[position + 1][logits.argmax(-1).numpy()]
        np.testing.assert_array_equal(masked.argmax(-1).numpy(), expected)


def test_golden_values_are_reproduced_by_onnxruntime(segment: BookSegment, file: bytes) -> None:
    arrays = np.load(io.BytesIO(golden_file(segment)), allow_pickle=False)
    answered = run(file, {name: arrays[f"in_{name}"] for name in segment.inputs})
    for name in segment.outputs:
        np.testing.assert_allclose(answered[name], arrays[f"out_{name}"], atol=PARITY_LIMIT)


def test_a_published_book_names_its_instruments_and_factors(
    tmp_path: Path, segment: BookSegment, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrm.book_export.onnx_file", lambda _: file)  # made already: only the time is saved
    manifest = export(segment.model, tmp_path / "models")
    assert manifest.algorithm == "hrm_book"
    assert manifest.observation == BookSchema(instruments=K, factors=FACTORS)
    assert manifest.carry == {"z_H": (K + 4, 64), "z_L": (K + 4, 64)}
    assert manifest.metrics["score"] == 0.9
    assert manifest.metrics["parity_max_abs_error"] <= PARITY_LIMIT
    for name, digest in manifest.files.items():
        data = (tmp_path / "models" / "book" / "v1" / name).read_bytes()
        assert (sha256_hex(data), len(data)) == (digest.sha256, digest.bytes)
    with pytest.raises(ModelError, match="decides books") as error:
        _ = manifest.market
    assert error.value.code == "model_of_a_book"


def test_a_graph_of_other_weights_is_refused_and_nothing_is_published(
    tmp_path: Path, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrm.book_export.onnx_file", lambda _: file)
    with pytest.raises(ModelError, match=r"differ by .*nothing was published"):
        export(segment_of(seed=1).model, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def export(model: BookModel, store: Path):
    return export_book(
        model, store=store, name="book", version="v1", settings=of_a_set(), metrics={"score": 0.9}, dataset_digest="abc"
    )


@pytest.mark.parametrize("storage", ["static_int8", "half"])
def test_a_form_that_is_not_made_of_books_is_refused_and_nothing_is_published(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"not {storage}"):
        export_book(
            segment_of().model,
            store=tmp_path / "models",
            name="book",
            version="v1",
            settings=of_a_set(),
            metrics={},
            dataset_digest="abc",
            storage=storage,
        )
    assert not (tmp_path / "models").exists()
