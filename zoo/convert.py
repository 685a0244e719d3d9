"""Any checkpoint into any other form: one tensor at a time, whole or not at all, nothing lost without a reason."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import open_checkpoint
from converters.checkpoint import BLOCK, Checkpoint, TensorInfo, little_endian
from converters.dialects import canonical, derived_tokenizer, dialect_of, dropped
from converters.gguf_quants import q8_0_error
from converters.targets import Target, find_target
from converters.view import Cast, Made, Recipe, Subset, View
from zoo.errors import CaptureError, ConfigError, SourceError, VerifyError, WeightsError
from zoo.graph.computed import COMPUTED, is_computed, sinusoids
from zoo.registry import SourceRef, parse
from zoo.tolerances import ROUNDING
from zoo.written import may_write, writing

if TYPE_CHECKING:
    from zoo.graph.ir import Graph
    from zoo.sources import Progress

__all__ = ["Conversion", "convert"]


@dataclass(slots=True)
class Conversion:
    """What a conversion did, or would do.

    Attributes:
        folder: what was written, None after a dry run.
        source: the checkpoint, `dialect` how it is spelled, `target` the form it was given.
        names: name in the target -> the source's tensors that it is made of.
        dropped: tensor of the source -> why it is not in the target.
        nans: names of tensors that hold NaN.
        nbytes: size of the tensors written.
        verified: what was compared; outputs only of models that can be captured.
    """

    folder: Path | None
    source: Path
    dialect: str
    target: str
    names: dict[str, str]
    dropped: dict[str, str] = field(default_factory=dict)
    nans: list[str] = field(default_factory=list)
    nbytes: int = 0
    verified: str = ""

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "folder": self.folder and str(self.folder), "source": str(self.source)}


def convert(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    to: str = "safetensors",
    *,
    task: str | None = None,
    dtype: str | None = None,
    shard_size: int | None = None,
    dry_run: bool = False,
    verify: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write a model's checkpoint in another form, with its config and tokenizer beside it.

    Args:
        model: what `zoo.load` takes: a name, "hf://org/name", a folder, a file of weights.
        folder: a new or empty folder; it appears complete or not at all.
        to: one of `converters.targets.TARGETS`.
        task: for another head than the checkpoint's own.
        dtype: of the floating-point tensors, as they are by default: float32, bfloat16 or float16, and for GGUF q8_0.
            GGUF has vectors and a few tables in float32, whatever is asked for.
        shard_size: largest size of a file in bytes, where the form has shards.
        dry_run: only tell what would be written.
        verify: load both ends and compare: every tensor, bit for bit as the dtype rounds it (Q8_0 within what it may be
            off), and the outputs.
        strict: tensors that hold NaN are an error.
        overwrite: the folder may be one that was written before: files that its conversion.json lists, unchanged since,
            give way to the new ones; all others stay.
        offline: True uses only what is on this machine.
        progress: told (what, bytes done, bytes in all).

    Raises:
        WeightsError: tensors that neither the model nor the form has a place for; all are named.
        ConfigError: the folder holds something else, or the source, or files of the list were changed; there is no such
            form, or not with this dtype.
        VerifyError: the two ends differ.
        SourceError: the disk has not enough room, or cannot be written to; the folder is as it was.
    """
    from zoo.loading import config_of, fetch_checkpoint, graph_for
    from zoo.weights import as_saved, expected_shapes, gathered, scattered

    target = find_target(to)
    out = Path(folder)
    found = parse(model)
    if isinstance(found, SourceRef) and found.kind == "local":
        _keep_apart(Path(found.location), out)
    may_write(out, overwrite)
    place, _ = fetch_checkpoint(found, offline, progress)
    _keep_apart(place, out)
    config = config_of(place, found)
    try:
        graph = graph_for(config, task, "float32", place=place)
    except CaptureError:
        graph = _parameters(config, task, place)
    if graph.meta.get("class"):
        config = {**config, "architectures": [graph.meta["class"]]}

    with ExitStack() as stack:
        raw = stack.enter_context(open_checkpoint(place))
        read = canonical(raw, config, expected_shapes(graph))
        dialect = dialect_of(raw) if read is not raw else None
        whole = gathered(graph, read, as_published=read is raw)
        ours, served, gone = _in_graph_names(whole, graph, keep=target.dialect is None)
        ours, placed, homeless = _in_places(ours, graph, target, config)
        restored: set[str] = set()  # put together with others and taken apart again: as it was
        if target.dialect is None:
            placed = as_saved(graph, scattered(graph, placed))
            restored = {name for group in graph.stored for name in group.tensors if read is raw and name in raw.infos}
        written: Checkpoint = target.view(placed, config)
        kept = _used(written, ours)
        stored = target.stored(written, dtype)
        quantised = {name for name, kind in stored.items() if kind == "q8_0"}
        written = Cast(written, {name: "float32" if name in quantised else kind for name, kind in stored.items()})
        result = Conversion(
            None,
            raw.path,
            dialect.NAME if dialect else "hf-torch",
            target.name,
            {name: name if name in restored else ", ".join(_origins(written, name)) for name in written.infos},
            {
                **gone,
                **homeless,
                **(dropped(dialect, raw.infos, _used(read)) if read is not raw else {}),
                **dropped(target.dialect_module(), ours.infos, kept),
            },
            nbytes=sum(
                info.nbytes * 34 // 128 if name in quantised else info.nbytes  # a block of 32 values has 34 bytes
                for name, info in written.infos.items()
                if name not in written.aliases
            ),
        )
        if dry_run:
            return result
        _need_room(
            out, result.nbytes * (2 if target.with_graph else 1)
        )  # an archive's weights are a file of their own first
        with writing(out, overwrite) as (fresh, record):
            _companions(place if place.is_dir() else place.parent, fresh, target.config(config), raw)
            watched = _Watched(written, progress, strict)
            _write(fresh, target, watched, config, served, shard_size, quantised)
            result.nans = watched.nans
            record |= _record(result, dtype)
            if verify:
                exact = _verify(ours, written, quantised, fresh, config, graph)
                result.verified = "every tensor"
                if graph.nodes:
                    _compare_outputs(place, fresh, config, graph, "" if exact and dtype is None else dtype or "float32")
                    result.verified = "every tensor and the outputs"
    result.folder = out
    return result


_ROOM = 1 << 24  # what the files beside the weights may take


def _in_graph_names(checkpoint: Checkpoint, graph: Graph, keep: bool) -> tuple[View, Graph, dict[str, str]]:
    """The tensors under the names that the model's class gives them, tied ones once; the graph of what they serve; and
    what is left out and why.

    Args:
        keep: what the class does not use but another head may need is kept, under the name it has.
    """
    from zoo.weights import fit, prune, untie

    graph = untie(graph, checkpoint)
    served = graph
    fitted = fit(graph, {name: info.shape for name, info in checkpoint.infos.items()}, checkpoint.path)
    if graph.nodes:
        served, _ = prune(graph, fitted, checkpoint.path)  # raises if the main output lacks a tensor
    elif lacking := [name for name in fitted.missing if not is_computed(name)]:
        raise WeightsError(
            f"the checkpoint lacks {len(lacking)} of the model's tensors", where=checkpoint.path, got=", ".join(lacking)
        )
    recipes: dict[str, Recipe | Made] = {
        name: Recipe(own) for name, own in fitted.names.items() if not is_computed(name)
    }
    gone = {own: COMPUTED for name, own in fitted.names.items() if is_computed(name)}
    tables = dict(fitted.made)
    for name in graph.meta.get("sinusoids", ()):
        table = sinusoids(graph.params[name].shape)
        own = fitted.names.get(name)
        if own is not None and np.array_equal(checkpoint.read(own), table):  # as if it were not there
            del recipes[name]
            tables[name] = table
            gone |= {own: COMPUTED} if keep else {}
    if not keep:  # other forms may store what torch computes
        recipes |= {name: Made(table.shape, table.dtype.name, table.view) for name, table in tables.items()}
    for name in set(checkpoint.infos) - set(fitted.names.values()):
        why = fitted.unused.get(name, "it is the same as another tensor, which is written")
        if keep and name in fitted.unused and why != COMPUTED:
            recipes[name] = Recipe(name)
        else:
            gone[name] = why
    served = served.keeping(recipes)
    return View(checkpoint, recipes), served, gone


def _in_places(
    ours: View, graph: Graph, target: Target, config: Mapping[str, Any]
) -> tuple[View, View, dict[str, str]]:
    """What of the tensors can be written, under the model's names and under those that the form has places for.

    A form may know a tensor by the name in its file, by another name of a tied weight, or by an older one. Tensors
    without a place are left out, with the reason, if the form computes them or if no output needs them.
    """
    from zoo.weights import needed, other_names

    has_place = target.knows(config)
    if has_place is None:
        return ours, ours, {}
    wanted = needed(graph) if graph.nodes else set(ours.infos)
    names: dict[str, str] = {}
    gone, known = {}, False
    for name in sorted(ours.infos, key=lambda name: name not in wanted):  # what outputs need has its place first
        own = ours.sources(name)
        others = (other for other in other_names(graph, name) if other not in wanted)
        found = next(filter(has_place, (*own, name, *others)), None)
        known |= found is not None
        if found in names and name not in wanted:
            gone[name] = "no output needs it, and its place in the form is another's"
        elif found is not None or (own and name in wanted):
            names[found or name] = name
        else:
            gone[name] = "no output needs it, and the form has no place for it" if own else COMPUTED
    if not known:  # the form does not know the class, and says so itself
        return ours, ours, {}
    order = {name: number for number, name in enumerate(ours.infos)}
    names = dict(sorted(names.items(), key=lambda item: order[item[1]]))
    ours = Subset(ours, names.values())
    return ours, View(ours, {place: Recipe(name) for place, name in names.items()}), gone


def _parameters(config: Mapping[str, Any], task: str | None, place: Path) -> Graph:
    """Names and shapes alone: a model that cannot be captured can still be converted."""
    from zoo.capture.huggingface import config_from, parameters_of
    from zoo.loading import fitting

    return parameters_of(config_from(config), task, size=fitting(config, place))


class _Watched(View):
    """Tells how far writing is, and which tensors hold NaN."""

    def __init__(self, source: Checkpoint, progress: Progress | None, strict: bool) -> None:
        super().__init__(source, {name: Recipe(name) for name in source.infos}, source.aliases)
        self.nans: list[str] = []
        self._progress, self._strict = progress, strict
        self._done = 0
        self._total = sum(info.nbytes for name, info in source.infos.items() if name not in source.aliases)

    def blocks(self, name: str, size: int = BLOCK) -> Iterator[np.ndarray]:
        for block in super().blocks(name, size):
            if name not in self.nans and has_nan(block):
                self.nans.append(name)
                if self._strict:
                    raise WeightsError("a tensor holds NaN", where=f"{self.path}, tensor {name!r}")
            yield block
            self._done += block.nbytes
            if self._progress is not None:
                self._progress("convert", min(self._done, self._total), self._total)


def has_nan(array: np.ndarray) -> bool:
    """Whether a value is not a number; the dtypes of ml_dtypes have no kind of their own for floats."""
    if array.dtype.kind in "biu":
        return False
    return bool(np.isnan(array if array.dtype.kind in "fc" else array.astype(np.float32)).any())


def _write(
    folder: Path,
    target: Target,
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    graph: Graph,
    limit: int | None,
    quantised: Collection[str],
) -> None:
    """The weights, in one file or in shards of at most `limit` bytes with their index."""
    infos = checkpoint.infos
    if limit is None or not target.sharded or sum(info.nbytes for info in infos.values()) <= limit:
        tokenizer = folder / "tokenizer.json"
        text = tokenizer.read_text("utf-8") if tokenizer.is_file() else None
        target.write(folder / target.file, checkpoint, config, graph, text, quantised)
        return
    checkpoint, in_index = target.in_shards(checkpoint)
    groups: list[list[str]] = [[]]
    room = limit
    for name, info in checkpoint.infos.items():
        if info.nbytes > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= info.nbytes
    stem, suffix = target.file.split(".", 1)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file = f"{stem}-{number:05d}-of-{len(groups):05d}.{suffix}"
        target.write(folder / file, Subset(checkpoint, names), config, graph, shard=True)
        weight_map.update((in_index[name], file) for name in names)
    total = sum(info.nbytes for info in checkpoint.infos.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{target.file}.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _companions(source: Path, folder: Path, config: Mapping[str, Any], raw: Checkpoint) -> None:
    """The files beside the weights, and those that follow from what the weights' own file says."""
    from zoo.sources.local import copy_companions

    copy_companions(source, folder)
    if not (folder / "tokenizer.json").is_file() and (tokenizer := derived_tokenizer(raw)) is not None:
        (folder / "tokenizer.json").write_text(tokenizer, "utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _record(result: Conversion, dtype: str | None) -> dict[str, Any]:
    return {
        "source": result.source.name,
        "from": result.dialect,
        "to": result.target,
        "dtype": dtype,
        "tensors": len(result.names),
        "dropped": result.dropped,
    }


def _keep_apart(place: Path, out: Path) -> None:
    """What is read must not be what is replaced.

    Raises:
        ConfigError: the output is the source's folder, holds it, or lies in it.
    """
    source, target = place.resolve(), out.resolve()
    if source.is_relative_to(target) or (source.is_dir() and target.is_relative_to(source)):
        raise ConfigError(
            "the output would stand in the place of the checkpoint that is read, or inside it",
            where=out,
            expected=f"a folder outside {place}",
            do="choose another folder",
        )


def _need_room(out: Path, nbytes: int) -> None:
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < nbytes + _ROOM:
        raise SourceError(
            "the disk has not enough room",
            where=existing,
            expected=f"{(nbytes + _ROOM) / 1e6:.0f} MB",
            got=f"{free / 1e6:.0f} MB free",
            do="make room, or convert to another disk",
        )


def _used(view: Checkpoint, bottom: Checkpoint | None = None) -> set[str]:
    """The tensors of `bottom` (of the file, if it is not given) that a view is made of."""
    return {origin for name in view.infos for origin in _origins(view, name, bottom)}


def _origins(view: Checkpoint, name: str, bottom: Checkpoint | None = None) -> list[str]:
    """The tensors of `bottom` (of the file, if it is not given) that one tensor of a view is made of."""
    if view is bottom or not isinstance(view, (View, Cast)):
        return [name]
    return [origin for source in view.sources(name) for origin in _origins(view.source, source, bottom)]


def _verify(
    ours: Checkpoint,
    written: Checkpoint,
    quantised: Collection[str],
    folder: Path,
    config: Mapping[str, Any],
    graph: Graph,
) -> bool:
    """Read back what was written: every tensor must be the source's, rounded as it was stored.

    Args:
        ours: the source under canonical names.
        written: the view of it that was written, of which `quantised` went into the file as Q8_0.

    Returns:
        Whether each is the same bit for bit, but for the dtype's rounding.

    Raises:
        VerifyError: naming the first tensor that differs.
    """
    from zoo.weights import expected_shapes, gathered

    stored = {own: info.dtype for name, info in written.infos.items() for own in _origins(written, name, ours)}
    lossy = {own for name in quantised for own in _origins(written, name, ours)}
    expected = Cast(Subset(ours, sorted(stored)), stored)
    all_exact = True
    with open_checkpoint(folder) as raw:
        read = canonical(raw, config, expected_shapes(graph))
        back, _, _ = _in_graph_names(gathered(graph, read, as_published=read is raw), graph, keep=True)
        for name, info in expected.infos.items():
            if name not in back.infos:
                raise VerifyError("a tensor is not in what was written", where=f"{folder}, tensor {name!r}")
            exact = expected.exact(name) and back.exact(name) and name not in lossy
            all_exact &= exact
            if not (_same(expected, back, info) if exact else _close(expected, back, info, name in lossy)):
                raise VerifyError(
                    "a tensor is not what it was",
                    where=f"{folder}, tensor {name!r}",
                    expected=f"{info.dtype} {list(info.shape)}, bit for bit",
                    got=f"{back.infos[name].dtype} {list(back.infos[name].shape)}",
                )
    return all_exact


def _compare_outputs(place: Path, folder: Path, config: dict[str, Any], graph: Graph, rounded: str) -> None:
    """Both ends on the float64 reference: equal as `CONVERTED` has it for the dtype that weights were rounded to."""
    from zoo.loading import assemble
    from zoo.samples import sample_inputs
    from zoo.tolerances import CONVERTED

    one, other = (assemble(str(path), "numpy", graph, path, config, True) for path in (place, folder))
    inputs = sample_inputs(one)
    left, right = one(**inputs), other(**inputs)
    limit = CONVERTED[rounded]
    for name, value in left.items():
        scale = float(np.abs(value[np.isfinite(value)]).max(initial=0.0)) or 1.0
        if name not in right:
            continue  # it needs a tensor that the form has no place for, and that is said
        with np.errstate(invalid="ignore"):  # weights that hold NaN or infinity make outputs that do, at both ends
            apart = np.abs(np.asarray(value, np.float64) - right[name])
        apart[(value == right[name]) | (np.isnan(value) & np.isnan(right[name]))] = 0
        worst = float(apart.max(initial=0.0)) / scale
        if not worst <= limit:
            raise VerifyError(
                "the converted model computes something else",
                where=f"{folder}, output {name!r}",
                expected=f"a relative difference of at most {limit:g}",
                got=f"{worst:.3g}",
            )


def _close(one: Checkpoint, other: Checkpoint, info: TensorInfo, quantised: bool) -> bool:
    """Whether two tensors are the same up to Q8_0's rounding, or that of what a form computes (Gemma's norms)."""
    x, y = (checkpoint.read(info.name).astype(np.float64) for checkpoint in (one, other))
    if x.shape != y.shape:
        return False
    size = np.abs(x)
    limit = q8_0_error(float(size.max(initial=0))) if quantised else ROUNDING[info.dtype] * np.maximum(size, 1)
    return bool(np.all(np.abs(x - y) <= limit))


def _same(one: Checkpoint, other: Checkpoint, info: TensorInfo) -> bool:
    found = other.infos[info.name]
    return (found.shape, found.dtype) == (info.shape, info.dtype) and _digest(one, info) == _digest(other, info)


def _digest(checkpoint: Checkpoint, info: TensorInfo) -> bytes:
    """Of a tensor's bits; checkpoints may cut it into different blocks."""
    found = hashlib.sha256()
    for block in checkpoint.blocks(info.name):
        found.update(little_endian(block))
    return found.digest()
