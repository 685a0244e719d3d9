"""Derives converters/dialects/hf_names.json.gz: where transformers 4 keeps each tensor in TensorFlow and in Flax.

    python tests/oracle/make_tables.py CHECKPOINTS [--add]

CHECKPOINTS is what make_checkpoints.py wrote. Every tensor there has values of its own, so a TensorFlow or Flax
tensor is matched with the torch tensor that holds the same values in some order: names are found by value, and no
rule is assumed. The table says, per class, torch name -> where TensorFlow keeps it and where Flax does, with {} for
numbers of layers; under "" it lists layers of TensorFlow without weights. Needs h5py and msgpack.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
from safetensors.numpy import load_file

TABLE = Path(__file__).parents[2] / "converters" / "dialects" / "hf_names.json.gz"
FILES = {"tf": "tf_model.h5", "flax": "flax_model.msgpack"}
NUMBER = re.compile(r"(?<![A-Za-z0-9:])\d+(?![A-Za-z0-9])")
KINDS = {"resnet": ("layer_type", "bottleneck"), "mobilebert": ("normalization_type", "no_norm")}
"""Models whose layers have other names by a field of the config: the field, and the value that the plain class has."""

KERNELS = {"kernel": (1, 0), "kernel1d": (2, 1, 0), "kernel2d": (3, 2, 0, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--add", action="store_true", help="keep what the table has of classes that are not there")
    options = parser.parse_args()
    table: dict[str, dict[str, Any]] = {kind: {} for kind in FILES}
    if options.add:
        table = json.loads(gzip.decompress(TABLE.read_bytes()))
    for folder in sorted(options.checkpoints.iterdir()):
        report = folder / "report.json"
        if not report.is_file():
            continue
        config = json.loads((folder / "torch" / "config.json").read_text())
        name = config["architectures"][0]
        field, usual = KINDS.get(config["model_type"], ("", None))
        if field and config[field] != usual:
            name = f"{name}?{field}={config[field]}"
        for kind, file in FILES.items():
            if not (folder / kind / file).is_file():
                continue
            places, odd = match(load_file(folder / "torch" / "model.safetensors"), read(folder / kind / file))
            known = table[kind].setdefault(name, {})
            for torch_name, found in generalised(places).items():
                if known.setdefault(torch_name, found) != found:
                    print(f"{folder.name} {kind}: {torch_name} is at {found} here, at {known[torch_name]} elsewhere")
            for line in odd:
                print(f"{folder.name} {kind}: {line}")
            if kind == "tf" and (empty := empty_layers(folder / kind / file)):
                known[""] = empty
    text = json.dumps(table, sort_keys=True, separators=(",", ":"))
    TABLE.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{TABLE}: {', '.join(f'{len(found)} classes for {kind}' for kind, found in table.items())}")


def match(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> tuple[dict[str, list[str]], list[str]]:
    """Torch name -> their names, each with its layout; and what could not be matched."""
    by_values: dict[object, list[str]] = {}
    for name, array in ours.items():
        by_values.setdefault(values(array), []).append(name)
    places: dict[str, list[str]] = {}
    odd = []
    for name, array in theirs.items():
        found = by_values.get(values(array), [])
        if not found:
            odd.append(f"{name} {array.shape} is no torch tensor")
        for own in found:
            layout = layout_of(array, ours[own])
            if layout is None:
                odd.append(f"{name} {array.shape} is {own} {ours[own].shape} in an unknown layout")
                continue
            places.setdefault(own, []).append(f"{layout}|{name}")
    return places, odd


def generalised(places: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The same with {} for numbers, wherever all tensors that differ in those numbers alone are in like places.

    A number that says what kind of layer it is (0 a norm, 1 a convolution) stays; the last ones stay first.
    """
    found: dict[str, list[str]] = {}
    left = dict(places)
    for kept in range(max((len(NUMBER.findall(name)) for name in places), default=0) + 1):
        groups: dict[str, dict[str, list[str] | None]] = {}
        for name, theirs in left.items():
            template, free = with_free(name, kept)
            filled = [fill(place, free) for place in theirs]
            groups.setdefault(template, {})[name] = None if None in filled else [one for one in filled if one]
        for template, members in groups.items():
            first = next(iter(members.values()))
            if first is not None and all(member == first for member in members.values()):
                found[template] = first
                for name in members:
                    del left[name]
    return found | left


def with_free(name: str, kept: int) -> tuple[str, list[str]]:
    """The name with {} for all numbers but the last `kept`, and those numbers."""
    numbers = NUMBER.findall(name)
    free = len(numbers) - kept
    if free <= 0:
        return name, []
    return NUMBER.sub("{}", name, count=free), numbers[:free]


def fill(place: str, free: list[str]) -> str | None:
    """A place with {} for its first numbers, if they are `free` in this order."""
    layout, _, name = place.partition("|")
    if NUMBER.findall(name)[: len(free)] != free:
        return None
    return f"{layout}|{NUMBER.sub('{}', name, count=len(free)) if free else name}"


def layout_of(array: np.ndarray, own: np.ndarray) -> str | None:
    if array.shape == own.shape and np.array_equal(array, own):
        return ""
    if array.shape == (1, *own.shape) and np.array_equal(array[0], own):
        return "row"
    if array.ndim == 1 and own.ndim > 1 and array.size == len(own) and np.array_equal(array, own.ravel()):
        return "vector"
    for layout, axes in KERNELS.items():
        if len(axes) == array.ndim and np.array_equal(array.transpose(axes), own):
            return layout
    for axes in itertools.permutations(range(array.ndim)):
        if np.array_equal(array.transpose(axes), own):
            return "permute" + "".join(map(str, axes))
    return None


def values(array: np.ndarray) -> tuple[int, str]:
    flat = np.sort(np.ascontiguousarray(array, np.float32).ravel())
    return array.size, hashlib.sha256(flat.tobytes()).hexdigest()


def read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".msgpack":
        return dict(flat(msgpack.unpackb(path.read_bytes(), ext_hook=unpack_array, strict_map_key=False)))
    found = {}
    with h5py.File(path) as file:
        # Weights that belong to no layer are in a group that the list does not have.
        for layer in [*map(str, file.attrs["layer_names"]), *({"top_level_model_weights"} & set(file))]:
            for name in map(str, file[layer].attrs["weight_names"]):
                found[f"{layer}/{name}"] = np.asarray(file[layer][name])
    return found


def empty_layers(path: Path) -> list[str]:
    """Layers without weights, which Keras lists all the same; those that are not numbered by how many came before."""
    with h5py.File(path) as file:
        layers = map(str, file.attrs["layer_names"])
        return [layer for layer in layers if not len(file[layer].attrs["weight_names"]) and not layer[-1].isdigit()]


def unpack_array(code: int, data: bytes) -> np.ndarray:
    if code != 1:
        raise ValueError(f"unknown extension type {code}")
    shape, dtype, raw = msgpack.unpackb(data, raw=True)
    return np.frombuffer(raw, dtype.decode()).reshape(shape)


def flat(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, (*path, key))
        else:
            yield "/".join((*path, key)), value


if __name__ == "__main__":
    main()
