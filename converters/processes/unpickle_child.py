"""Lists the tensors of a PyTorch pickle without PyTorch, running nothing that the pickle asks for.

Not imported: `converters.formats.torch.read` runs it in a process of its own, by path, as
`python -I -S unpickle_child.py zip|legacy CPU MEMORY`. stdin is data.pkl ("zip") or the whole legacy file;
stdout is one JSON object: `{"unsafe": global}`, `{"error": why}`, or

    tensors      [[path, storage key, dtype, offset, shape, strides], ...]; offset and strides in values
    unsupported  [[path, kind], ...]: tensors that are not plain strided ones
    storages     {key: [dtype, number of values]}
    other        [[path, value], ...]: leaves that are no tensors, the first `MAX_OTHER` of them
    keys, start  legacy only: the storages in the file's order, and where the first begins

A path is the list of dict keys and list positions that lead to the leaf.

Three walls: `find_class` knows a fixed set of names, each standing for an inert, immutable record; the
process may not open files, import, fork or write (`converters.processes.confined`); its CPU time and memory are
bounded.
Source of the format: torch/serialization.py (`_save`, `_legacy_save`) and torch/_utils.py (`_rebuild_*`).
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections import namedtuple
from collections.abc import Iterator
from typing import Any, BinaryIO

if __package__:
    from converters.processes.confined import Unsafe, confine, end_after
else:  # run by path: -I leaves this folder out of the search path, so that nothing in it can pose as another module
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    from confined import Unsafe, confine, end_after  # type: ignore[no-redef]

    sys.path.pop()

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_DEPTH, MAX_VISITS, MAX_OTHER, MAX_TEXT, MAX_CHARS = 64, 2_000_000, 10_000, 1000, 1 << 26


def main(kind: str, cpu: float, memory: int) -> None:
    confine(int(cpu) + 2, memory)
    end_after(cpu)
    try:
        result = read_zip(sys.stdin.buffer) if kind == "zip" else read_legacy(sys.stdin.buffer)
        text = json.dumps(result)
    except Unsafe as error:
        text = json.dumps({"unsafe": str(error)[:MAX_TEXT]})
    except MemoryError:
        text = json.dumps({"error": f"it wants more than {memory >> 20} MiB of memory"})
    except Exception as error:  # a pickle can make the unpickler raise anything
        text = json.dumps({"error": f"{type(error).__name__}: {error}"[:MAX_TEXT]})
    sys.stdout.write(text)
    sys.stdout.flush()
    os._exit(0)  # skips the destructors: a deeply nested object can overflow the stack there


# Records are named tuples: BUILD can set attributes on whatever a pickle holds, and tuples have none to set.
Tensor = namedtuple("Tensor", "key dtype offset shape strides")
Storage = namedtuple("Storage", "key dtype numel shift")
Unsupported = namedtuple("Unsupported", "kind")
Dtype = namedtuple("Dtype", "name")
StorageType = namedtuple("StorageType", "dtype")


class Opaque(namedtuple("Opaque", "kind")):
    """A value of which only the type is reported."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class Fixed(type):
    """A class that a pickle cannot set attributes of."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise TypeError("the class of a value cannot be changed")


class Value(Opaque, metaclass=Fixed):
    """A plain value of a class of its own: made of anything, given anything, and none of it kept."""

    __slots__ = ()

    def __new__(cls, *args: object, **fields: object) -> Value:
        return tuple.__new__(cls, (cls.__name__,))

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """As for a list's subclass."""

    def extend(self, values: object) -> None:
        """As for a list's subclass."""


class Call(namedtuple("Call", "function")):
    """One of our functions, callable by a pickle but not changeable."""

    __slots__ = ()

    def __call__(self, *args: object) -> object:
        return self.function(*args)


class Dict(dict):
    """An OrderedDict; drops the attributes that state dicts carry (`_metadata`)."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


def tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> tuple:
    """torch._utils._rebuild_tensor_v2 (and its older form, which has no `rest`)."""
    # rest: requires_grad, backward_hooks, metadata (the conjugate and negative bits)
    if len(rest) > 2 and rest[2]:
        return Unsupported("conjugate or negative view")
    return tensor_of(storage, storage.dtype, offset, shape, strides)


def tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> tuple:
    """torch._utils._rebuild_tensor_v3: the dtype stands apart from an untyped storage."""
    if metadata:
        return Unsupported("conjugate or negative view")
    return tensor_of(storage, dtype.name, offset, shape, strides)


def tensor_of(storage: Any, dtype: str, offset: Any, shape: Any, strides: Any) -> tuple:
    if type(storage) is not Storage:
        return Unsupported("tensor without a storage")
    return Tensor(storage.key, dtype, storage.shift + offset, shape, strides)


def from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor or parameter with Python attributes."""
    return function(*args) if type(function) is Call else Unsupported("tensor subclass")


def unsupported(kind: str) -> Call:
    return Call(lambda *args: Unsupported(kind))


def opaque(kind: str) -> Call:
    return Call(lambda *args: Opaque(kind))


STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
    "QInt8": "qint8",
    "QInt32": "qint32",
    "QUInt8": "quint8",
    "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4",
}

DTYPES = [
    *("float64", "float32", "float16", "bfloat16", "bool", "complex128", "complex64", "complex32"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("float4_e2m1fn_x2", "qint8", "qint32", "quint8", "quint4x2", "quint2x4"),
]

# Classes of values, not one of which does anything here: none is imported, none is called.
VALUES = [
    *("argparse.Namespace", "types.SimpleNamespace", "builtins.slice", "builtins.range", "builtins.frozenset"),
    *(
        f"pathlib{part}.{kind}Path"
        for part in ("", "._local")
        for kind in ("Posix", "Windows", "PurePosix", "PureWindows", "")
    ),
    *(f"datetime.{kind}" for kind in ("datetime", "date", "time", "timedelta", "timezone")),
    *("decimal.Decimal", "fractions.Fraction", "uuid.UUID", "collections.deque"),
    *(
        f"{root}.utilities.{name}"
        for root in ("lightning.fabric", "lightning_fabric")
        for name in ("data.AttributeDict",)
    ),
    *("pytorch_lightning.utilities.parsing.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict"),
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode")),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
]

GLOBALS = {
    "collections.OrderedDict": Call(Dict),
    "collections.Counter": Call(Dict),
    "torch._utils._rebuild_tensor": Call(tensor),
    "torch._utils._rebuild_tensor_v2": Call(tensor),
    "torch._utils._rebuild_tensor_v3": Call(tensor_v3),
    "torch._utils._rebuild_parameter": Call(lambda data, *rest: data),
    "torch._utils._rebuild_parameter_with_state": Call(lambda data, *rest: data),
    "torch._tensor._rebuild_from_type_v2": Call(from_type),
    "torch._utils._rebuild_qtensor": unsupported("quantized tensor"),
    "torch._utils._rebuild_sparse_tensor": unsupported("sparse tensor"),
    "torch._utils._rebuild_nested_tensor": unsupported("nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": unsupported("meta tensor"),
    "torch._utils._rebuild_device_tensor_from_numpy": unsupported("tensor of another device"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": unsupported("tensor of another device"),
    "torch.Size": Call(tuple),
    "torch.device": opaque("torch.device"),
    "torch.Tensor": Opaque("torch.Tensor"),
    "torch.nn.parameter.Parameter": Opaque("torch.nn.Parameter"),
    "torch.serialization._get_layout": opaque("torch.layout"),
    "torch.storage.UntypedStorage": StorageType("uint8"),
    # Plain values that training scripts leave beside the weights.
    "_codecs.encode": opaque("bytes"),
    "builtins.bytearray": opaque("bytearray"),
    "builtins.complex": opaque("complex"),
    "builtins.set": opaque("set"),
    "collections.defaultdict": Call(lambda *factory: Dict()),
    **{
        f"builtins.{kind}": Opaque("type")
        for kind in ("int", "long", "float", "str", "unicode", "bool", "list", "dict", "tuple", "bytes")
    },
    "typing.Any": Opaque("type"),
    "numpy.ndarray": Opaque("numpy.ndarray"),
    "numpy.core.multiarray._reconstruct": opaque("numpy array"),
    "numpy._core.multiarray._reconstruct": opaque("numpy array"),
    "numpy.dtype": opaque("numpy.dtype"),
    "numpy.core.multiarray.scalar": opaque("numpy scalar"),
    "numpy._core.multiarray.scalar": opaque("numpy scalar"),
    **{name: Fixed(name.rpartition(".")[2], (Value,), {"__slots__": ()}) for name in VALUES},
    **{f"torch.{name}": Dtype(name) for name in DTYPES},
    **{f"torch.{name}Storage": StorageType(dtype) for name, dtype in STORAGES.items()},
    **{f"torch.cuda.{name}Storage": StorageType(dtype) for name, dtype in STORAGES.items()},
    "torch.UntypedStorage": StorageType("uint8"),
    **{
        f"torch.{scheme}": Opaque("torch.qscheme")
        for scheme in (
            "per_tensor_affine",
            "per_tensor_symmetric",
            "per_channel_affine",
            "per_channel_symmetric",
        )
    },
}


class Unpickler(pickle.Unpickler):
    """Resolves `GLOBALS` and storage references, nothing else."""

    def __init__(self, file: BinaryIO, storages: dict) -> None:
        super().__init__(file, encoding="utf-8", errors="backslashreplace")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # protocols 0 to 2 use Python 2's name
        try:
            return GLOBALS[f"{module}.{name}"]
        except KeyError:
            raise Unsafe(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Storage:
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError(f"unknown persistent id {str(pid)[:80]}")
        _, kind, key, _, numel = pid[:5]
        if type(kind) is not StorageType or type(key) is not str:
            raise ValueError(f"storage {str(key)[:80]} has no type or name")
        shift = 0
        if len(pid) == 6 and pid[5] is not None:  # files before 0.4: a view (key, offset, size) of the storage
            shift = pid[5][1]
        self.storages.setdefault(key, (kind.dtype, numel))
        return Storage(key, kind.dtype, numel, shift)


def read_zip(file: BinaryIO) -> dict[str, Any]:
    storages: dict[str, tuple] = {}
    return summary(Unpickler(file, storages).load(), storages)


def read_legacy(file: BinaryIO) -> dict[str, Any]:
    if Unpickler(file, {}).load() != MAGIC or Unpickler(file, {}).load() != PROTOCOL:
        raise ValueError("not a PyTorch file of protocol 1001")
    Unpickler(file, {}).load()  # sizes and byte order of the writer: the data is little-endian in any case
    storages: dict[str, tuple] = {}
    loaded = Unpickler(file, storages).load()
    keys = Unpickler(file, {}).load()
    return {**summary(loaded, storages), "keys": keys, "start": file.tell()}


def summary(loaded: object, storages: dict[str, tuple]) -> dict[str, Any]:
    found: dict[str, Any] = {"tensors": [], "unsupported": [], "other": [], "storages": storages}
    budget = [MAX_VISITS, MAX_CHARS]
    for path, leaf in leaves(loaded, (), budget):
        # Paths may share long strings in the pickle but not in the answer.
        budget[1] -= sum(map(len, path)) + 64
        if budget[1] < 0:
            raise ValueError("its names are too long to list")
        if type(leaf) is Tensor:
            found["tensors"].append((path, *leaf))
        elif type(leaf) is Unsupported:
            found["unsupported"].append((path, leaf.kind))
        elif len(found["other"]) < MAX_OTHER:
            found["other"].append((path, plain(leaf)))
    return found


def leaves(value: Any, path: tuple[str, ...], budget: list[int]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, leaf) for every leaf of nested dicts, lists and tuples."""
    budget[0] -= 1
    if len(path) > MAX_DEPTH or budget[0] < 0:
        raise ValueError("it is nested too deeply, or refers to itself")
    if type(value) in (dict, Dict):
        for key, item in value.items():
            name = str(key) if type(key) in (str, int, bool, float) else f"<{type(key).__name__}>"
            yield from leaves(item, (*path, name), budget)
    elif type(value) in (list, tuple):
        for position, item in enumerate(value):
            yield from leaves(item, (*path, str(position)), budget)
    else:
        yield path, value


def plain(leaf: Any) -> object:
    """What is told of a leaf that is no tensor: short plain values as they are, else its kind."""
    if leaf is None or type(leaf) in (bool, float) or (type(leaf) is int and leaf.bit_length() < 64):
        return leaf
    if type(leaf) is str:
        return leaf if len(leaf) <= MAX_TEXT else leaf[:MAX_TEXT] + "…"
    if type(leaf) is Dtype:
        return f"torch.{leaf.name}"
    return f"<{leaf.kind if type(leaf) is Opaque else type(leaf).__name__}>"


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
