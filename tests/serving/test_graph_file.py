"""What a graph may not reach for. The oracle is the onnx package, which the service does not have."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_models import hrm_graph

from core.errors import ModelError
from flows.drill_models import policy_graph
from serving.graph_file import INSIDE, require_self_contained


def elsewhere(location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 4])


def model(*nodes: onnx.NodeProto, initializers: tuple[TensorProto, ...] = (), **fields: object) -> onnx.ModelProto:
    graph = helper.make_graph([*nodes], "g", [info("x")], [info("y")], initializer=[*initializers])
    made: onnx.ModelProto = helper.make_model(graph, **fields)
    return made


def add() -> onnx.NodeProto:
    return helper.make_node("Add", ["x", "w"], ["y"])


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["w"], value=tensor)


def in_a_branch(node: onnx.NodeProto) -> onnx.NodeProto:
    branch = helper.make_graph([node], "branch", [], [info("w")])
    return helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)


def sparse(tensor: TensorProto) -> onnx.ModelProto:
    made = model(add())
    made.graph.sparse_initializer.add().values.CopyFrom(tensor)
    return made


def in_a_function(node: onnx.NodeProto) -> onnx.ModelProto:
    function = helper.make_function("", "Twice", ["x"], ["w"], [node], [helper.make_opsetid("", 17)])
    return model(add(), functions=[function])


PLACES: dict[str, Callable[[str], onnx.ModelProto]] = {
    "initializer": lambda file: model(add(), initializers=(elsewhere(file),)),
    "constant": lambda file: model(constant(elsewhere(file)), add()),
    "branch": lambda file: model(in_a_branch(constant(elsewhere(file)))),
    "branch in a branch": lambda file: model(in_a_branch(in_a_branch(constant(elsewhere(file))))),
    "sparse": lambda file: sparse(elsewhere(file)),
    "function": lambda file: in_a_function(constant(elsewhere(file))),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("file", ["weights.bin", "../weights.bin", "/etc/passwd"])
def test_numbers_in_another_file_are_found_wherever_they_are_named(place: str, file: str) -> None:
    with pytest.raises(ModelError, match="another file") as error:
        require_self_contained(PLACES[place](file).SerializeToString(), "model.onnx")
    assert error.value.code == "graph_unsafe"


def test_a_tensor_that_only_names_a_file_is_refused_too() -> None:
    """`data_location` is what onnxruntime reads now; which field decides is not ours to bet on."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.external_data.add(key="location", value="x")
    with pytest.raises(ModelError, match="another file"):
        require_self_contained(model(add(), initializers=(tensor,)).SerializeToString(), "model.onnx")


@pytest.mark.parametrize(
    ("operator", "domain"), [("Evil", "my.ops"), ("EPContext", "com.microsoft"), ("Add", "x" * 99)]
)
def test_operators_from_elsewhere_are_refused(operator: str, domain: str) -> None:
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    for made in (model(node), model(in_a_branch(node)), in_a_function(node)):
        with pytest.raises(ModelError) as error:
            require_self_contained(made.SerializeToString(), "model.onnx")
        assert error.value.code == "graph_unsafe"


@pytest.mark.parametrize("graph", [hrm_graph(), policy_graph("slow"), policy_graph("hungry")])
def test_graphs_that_need_nothing_else_pass(graph: bytes) -> None:
    require_self_contained(graph, "model.onnx")


def test_a_field_that_only_onnxruntime_would_see_is_refused() -> None:
    """Its parser drops what a tag has beyond 32 bits; to ours a graph so tagged would be no graph."""
    graph = model(add(), initializers=(elsewhere("weights.bin"),)).graph.SerializeToString()
    tag = b"\xba\x80\x80\x80\x10"  # field 7, a graph, and bit 32
    size = bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7])
    with pytest.raises(ModelError) as error:
        require_self_contained(tag + size + graph, "model.onnx")
    assert error.value.code == "graph_invalid"


@given(st.binary(max_size=64))
def test_bytes_that_are_no_onnx_do_no_harm(junk: bytes) -> None:
    try:
        require_self_contained(junk, "model.onnx")
    except ModelError as error:
        assert error.code in {"graph_invalid", "graph_unsafe"}


@given(st.data())
def test_a_graph_cut_off_anywhere_does_no_harm(data: st.DataObject) -> None:
    graph = hrm_graph()
    end = data.draw(st.integers(0, len(graph) - 1))
    try:
        require_self_contained(graph[:end], "model.onnx")
    except ModelError as error:
        assert error.code == "graph_invalid"


def test_the_runtimes_own_format_is_refused() -> None:
    with pytest.raises(ModelError, match="publish ONNX"):
        require_self_contained(b"\x00\x00\x00\x00ORTM" + b"\x00" * 40, "model.onnx")


def test_every_way_to_a_tensor_or_a_node_is_walked() -> None:
    """Against the descriptors of the installed onnx: a new field that leads to one fails here."""
    messages = {name: getattr(onnx, f"{name}Proto").DESCRIPTOR for name in INSIDE if name != "Training"}
    messages["Training"] = onnx.TrainingInfoProto.DESCRIPTOR
    names = {descriptor.full_name: name for name, descriptor in messages.items()}
    for name, descriptor in messages.items():
        leads = {
            field.number: names[field.message_type.full_name]
            for field in descriptor.fields
            if field.message_type is not None and field.message_type.full_name in names
        }
        assert INSIDE[name] == leads, name
    assert {"NodeProto", "TensorProto"} <= {full.removeprefix("onnx.") for full in names}


def test_a_hundred_megabytes_of_weights_are_stepped_over(tmp_path: Path) -> None:
    graph = model(add(), initializers=(numpy_helper.from_array(np.zeros(25_000_000, np.float32), "w"),))
    data = graph.SerializeToString()
    started = time.process_time()
    require_self_contained(data, "model.onnx")
    assert time.process_time() - started < 0.5  # a copy of it would not fail this; a walk over its numbers would
