"""A call's inputs: names checked, arrays of any framework taken, sizes compared, what was left out filled in.

One function for `m(...)`, `m.apply` and `m.module` of every backend; traced arrays pass, too. What it needs of a
framework are the four functions of `Arrays`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.arrays import dtype_name, numpy_dtype, to_numpy
from zoo.errors import InputError
from zoo.graph.ir import Input
from zoo.limits import Limits, refused, written

__all__ = ["NUMPY", "Arrays", "check_names", "named", "prepare_inputs"]


def _same(array: Any, rank: int) -> Any:
    return array


@dataclass(frozen=True, slots=True)
class Arrays:
    """What inputs need of a framework.

    Args:
        own: whether a value is an array of the framework, traced or not.
        shape: its dims: an int each, or what the framework has for a size that is not known yet.
        cast: (array, dtype) -> the array in a dtype of that name, or the nearest that the framework has.
        full: (shape, number, dtype) -> a filled array; a dim may be what `shape` gives.
        ranked: (array, rank) -> the array, of that many dims where that was not known.
    """

    own: Callable[[Any], bool]
    shape: Callable[[Any], tuple[Any, ...]]
    cast: Callable[[Any, str], Any]
    full: Callable[[Sequence[Any], Any, str], Any]
    ranked: Callable[[Any, int], Any] = _same


def _astype(array: Any, dtype: str) -> Any:
    return np.asarray(array).astype(numpy_dtype(dtype), copy=False)


NUMPY = Arrays(
    own=lambda x: type(x) is np.ndarray and x.dtype.isnative,
    shape=lambda x: x.shape,
    cast=_astype,
    full=lambda shape, value, dtype: np.full(tuple(shape), value, numpy_dtype(dtype)),
)


def prepare_inputs(
    declared: Sequence[Input],
    symbols: Mapping[str, tuple[int, int | None]],
    given: Mapping[str, Any],
    arrays: Arrays = NUMPY,
) -> dict[str, Any]:
    """The inputs checked against the graph, in the declared dtypes, with those that may be absent filled in.

    Args:
        declared, symbols: the graph's.
        given: by name; arrays of any framework, or lists. None is the same as left out.
        arrays: the framework to compute in. Its own arrays stay its own, all others become NumPy's.

    Raises:
        InputError: naming the input, what it should be and what it was.
    """
    check_names(declared, given)
    found: dict[str, Any] = {}
    sizes: dict[str, tuple[Any, str]] = {}
    for item in declared:
        value = given.get(item.name)
        if value is not None:
            found[item.name] = _checked(item, value, symbols, sizes, arrays)
    return {item.name: found[item.name] if item.name in found else _filled(item, sizes, arrays) for item in declared}


def named(declared: Sequence[Input], unnamed: Sequence[Any]) -> None:
    """InputError if a call has inputs without names."""
    if unnamed:
        names = [item.name for item in declared]
        got = f"{len(unnamed)} without a name"
        raise InputError(
            "inputs are given by name", expected=", ".join(names), got=got, do=f"call it with {names[0]}=…"
        )


def check_names(declared: Sequence[Input], given: Mapping[str, Any]) -> None:
    """InputError if an input is unknown, with the nearest name, or one that has no default is missing."""
    names = [item.name for item in declared]
    unknown = sorted(name for name in given if name not in names)
    if unknown:
        import difflib

        near = [match for name in unknown for match in difflib.get_close_matches(name, names, 1)]
        raise InputError(
            "the model has no such input",
            where=", ".join(unknown),
            expected=", ".join(names),
            got=", ".join(f"unknown {name}" for name in unknown),
            do=f"did you mean {', '.join(map(repr, near))}?" if near else None,
        )
    lacking = [item.name for item in declared if item.default is None and given.get(item.name) is None]
    if lacking:
        got = ", ".join(f"no {name}" for name in lacking)
        raise InputError("an input is missing", where=", ".join(lacking), expected=", ".join(names), got=got)


def _filled(item: Input, sizes: Mapping[str, tuple[Any, str]], arrays: Arrays) -> Any:
    unknown = [dim for dim in item.shape if isinstance(dim, str) and dim not in sizes]
    if unknown:
        raise InputError(
            "an input was left out whose shape does not follow from the others",
            where=item.name,
            expected=_wanted(item),
            got=f"no size for {', '.join(unknown)}",
            do=f"pass {item.name}",
        )
    shape = [sizes[dim][0] if isinstance(dim, str) else dim for dim in item.shape]
    if all(isinstance(size, int) for size in shape):
        known = tuple(size for size, _ in sizes.values() if isinstance(size, int))
        elements, limit = math.prod(shape), Limits(0, 1, 0, [known]).elements
        if elements > limit:
            raise refused(f"input {item.name!r}, which was left out", f"{written(elements)} elements", limit)
    return arrays.full(shape, item.default, item.dtype)


def _checked(
    item: Input,
    value: Any,
    symbols: Mapping[str, tuple[int, int | None]],
    sizes: dict[str, tuple[Any, str]],
    arrays: Arrays,
) -> Any:
    array = arrays.ranked(value, len(item.shape)) if arrays.own(value) else _numpy(item, value)
    shape = tuple(arrays.shape(array)) if arrays.own(array) else array.shape
    dtype = dtype_name(array.dtype)

    def refuse(what: str) -> InputError:
        dims = [size if isinstance(size, int) else "?" for size in shape]
        return InputError(what, where=item.name, expected=_wanted(item), got=f"{dtype} {dims}".replace("'", ""))

    if len(shape) != len(item.shape):
        raise refuse("an input has the wrong number of dims")
    if dtype != item.dtype and _kind(dtype) not in _ACCEPTED[_kind(item.dtype)]:
        raise refuse("an input has the wrong dtype")
    for axis, (size, dim) in enumerate(zip(shape, item.shape, strict=True)):
        if not isinstance(size, int):  # it is not known while a framework traces
            if isinstance(dim, str):
                sizes.setdefault(dim, (size, item.name))
            continue
        if isinstance(dim, int):
            if size != dim:
                raise refuse(f"dim {axis} of an input has the wrong size")
            continue
        low, high = symbols.get(dim, (1, None))
        if size < low or (high is not None and size > high):
            bounds = f"at least {low}" if high is None else f"{low} to {high}"
            raise InputError(f"{dim!r} of an input is out of range", where=item.name, expected=bounds, got=size)
        known, other = sizes.setdefault(dim, (size, item.name))
        if not isinstance(known, int):
            sizes[dim] = size, item.name
        elif known != size:
            raise InputError(
                f"two inputs disagree about {dim!r}",
                where=f"{other} and {item.name}",
                expected=f"{_wanted(item)} with {dim} = {known}",
                got=f"{dtype} {list(shape)}",
            )
    if dtype == item.dtype:
        return array
    return arrays.cast(array, item.dtype) if arrays.own(array) else _astype(array, item.dtype)


def _numpy(item: Input, value: Any) -> np.ndarray:
    """Any array or nested list as NumPy's, in this machine's order of bytes."""
    try:
        array = to_numpy(_listed(value) if isinstance(value, (list, tuple)) else value)
    except Exception as error:  # rows of different lengths, or what a framework says of arrays without values
        got = f"{type(value).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise InputError("an input is not an array", where=item.name, expected=_wanted(item), got=got) from None
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InputError("an input has masked elements", where=item.name, do="fill them, and pass a mask of your own")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _listed(value: Any) -> Any:
    """A list whose items may be a framework's arrays."""
    first = value[0] if value else None
    if isinstance(first, (list, tuple)) or hasattr(first, "dtype"):
        return [_listed(item) if isinstance(item, (list, tuple)) else to_numpy(item) for item in value]
    return value


def _wanted(item: Input) -> str:
    return f"{item.dtype} [{', '.join(map(str, item.shape))}]"


def _kind(dtype: str) -> str:
    if "int" in dtype:
        return "int"
    return "float" if "float" in dtype else "complex" if "complex" in dtype else dtype


_ACCEPTED = {"int": ("int", "bool"), "bool": ("bool", "int"), "float": ("float",), "complex": ("complex", "float")}
