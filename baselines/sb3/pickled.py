"""A pickle as inert data: its opcodes are walked, nothing it names is imported, nothing it calls is called.

What a pickle would construct becomes a `Record` of a name, arguments and a state. Names that are not on the list of
those which a saved VecNormalize has are refused, and so are opcodes that it has no use for.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError

OPCODES = 1_000_000
NAMES = re.compile(
    r"stable_baselines3\.common\.(vec_env\.vec_normalize\.VecNormalize|running_mean_std\.RunningMeanStd)"
    r"|gym(nasium)?\.spaces\.\w+\.[A-Z]\w+"
    r"|numpy\.(_core|core)\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
    r"|numpy\.(ndarray|dtype)"
    r"|numpy\.random\.(_pickle\.__(generator|bit_generator|randomstate)_ctor|_\w+\.[A-Z]\w+|mtrand\.RandomState)"
    r"|numpy\.random\.bit_generator\.(SeedSequence|__pyx_unpickle_SeedSequence)"
    r"|collections\.OrderedDict"
)
DTYPE = re.compile(r"[biuf][1248]")
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"}
LITERALS |= {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
LITERALS |= {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
MAKERS: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
IGNORED = {"PROTO", "FRAME", "STOP"}


@dataclass(frozen=True)
class Name:
    """Something the pickle would have imported."""

    text: str


@dataclass(eq=False)
class Record:
    """Something the pickle would have made by calling `name` with `args`, and then given `state`."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


def read_pickle(content: bytes) -> Any:
    """What the pickle says. Raises DataError for what only an interpreter of pickles could read."""
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count > OPCODES:
                raise DataError(f"more than {OPCODES:,} opcodes")
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise DataError(f"no pickle, or a damaged one ({type(error).__name__}: {str(error)[:100]})") from None


class _Machine:
    """The stack of a pickle, and its memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in LITERALS:
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in MAKERS:
            self.stack.append(MAKERS[opcode]())
        elif opcode in SHORT_TUPLES:
            self.stack.append(tuple(self.popped(len(self.stack) - SHORT_TUPLES[opcode])))
        elif opcode in _HANDLERS:
            _HANDLERS[opcode](self, argument)
        elif opcode not in IGNORED:
            raise DataError(f"opcode {opcode}, for which data has no use")

    def popped(self, start: int) -> list[Any]:
        """What lies above `start`, taken away."""
        if start < 0:
            raise IndexError("the stack is empty")
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def above_mark(self) -> list[Any]:
        return self.popped(self.marks.pop())

    def tuple_(self, _: Any) -> None:
        self.stack.append(tuple(self.above_mark()))

    def list_(self, _: Any) -> None:
        self.stack.append(self.above_mark())

    def append(self, _: Any) -> None:
        (value,) = self.popped(len(self.stack) - 1)
        self._list().append(value)

    def appends(self, _: Any) -> None:
        values = self.above_mark()
        self._list().extend(values)

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise TypeError("items for something that is no list")
        return self.stack[-1]

    def set_item(self, _: Any) -> None:
        self._set(self.popped(len(self.stack) - 2))

    def set_items(self, _: Any) -> None:
        self._set(self.above_mark())

    def _set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):  # an ordered dictionary is filled after it is made
            target.state = target.state or {}
            target = target.state
        if not isinstance(target, dict):
            raise TypeError("items for something that is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str):  # numbers can be chosen so that a dictionary of them takes hours to fill
                raise DataError(f"a key of type {type(key).__name__}")
            target[key] = value

    def global_(self, argument: str) -> None:
        self._name(argument.replace(" ", "."))

    def stack_global(self, _: Any) -> None:
        self._name(".".join(self.popped(len(self.stack) - 2)))

    def _name(self, text: str) -> None:
        if not NAMES.fullmatch(text):
            raise DataError(f"it names {text[:100]!r}, which no VecNormalize needs")
        self.stack.append(Name(text))

    def call(self, _: Any) -> None:
        name, args = self.popped(len(self.stack) - 2)
        if not (isinstance(name, Name) and isinstance(args, tuple)):
            raise TypeError("a call of something that is no name")
        self.stack.append(Record(name.text, args))

    def build(self, _: Any) -> None:
        (state,) = self.popped(len(self.stack) - 1)
        if not isinstance(self.stack[-1], Record):
            raise TypeError("a state for something that was not made")
        self.stack[-1].state = state

    def put(self, argument: int) -> None:
        if not 0 <= argument <= OPCODES:
            raise DataError("a memo of a number that no pickler gives")
        self.memo[argument] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, argument: int) -> None:
        self.stack.append(self.memo[argument])


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_,
    "LIST": _Machine.list_,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "MEMOIZE": _Machine.memoize,
}


def array_of(value: Any) -> NDArray[np.float64]:
    """The numbers of a pickled numpy array, or of a number. Raises DataError for anything else."""
    try:
        if isinstance(value, int | float):
            return np.array(value, dtype=np.float64)
        if not isinstance(value, Record):
            raise TypeError(type(value).__name__)
        raw, dtype, shape, order = _parts(value)
        return np.frombuffer(raw, dtype).reshape(shape, order=order).astype(np.float64)
    except (ValueError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"an array that cannot be read ({error})") from None


def _parts(record: Record) -> tuple[bytes, np.dtype[Any], tuple[int, ...], Any]:
    """(bytes, dtype, shape, order) of an array or a scalar, by the three ways numpy pickles them."""
    function = record.name.rpartition(".")[2]
    if function == "_reconstruct":
        _, shape, dtype, fortran, raw = record.state
        return raw, _dtype(dtype), shape, "F" if fortran else "C"
    if function == "_frombuffer":
        raw, dtype, shape, order = record.args
        return raw, _dtype(dtype), shape, order
    if function == "scalar":
        dtype, raw = record.args
        return raw, _dtype(dtype), (), "C"
    raise TypeError(record.name)


def _dtype(record: Record) -> np.dtype[Any]:
    kind, byte_order = record.args[0], record.state[1]
    if (
        not isinstance(kind, str)
        or record.name != "numpy.dtype"
        or not DTYPE.fullmatch(kind)
        or byte_order not in ("<", ">", "|", "=")
    ):
        raise TypeError("a dtype that is no plain number")
    return np.dtype(f"{byte_order}{kind}")
