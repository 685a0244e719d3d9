"""Any checkpoint into any other form: one tensor at a time, whole or not at all, nothing lost without a reason."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import open_checkpoint
from converters.checkpoint import BLOCK, Checkpoint, TensorInfo, little_endian
from converters.dialects import canonical, derived_tokenizer, derived_tokenizer_config, dialect_of, dropped
from converters.dialects.fields import nearly, note, refuse, unsaid, with_field
from converters.formats.gguf.quants import q8_0_error
from converters.formats.gguf.vocabulary import FILES as TOKENIZER_FILES
from converters.said_dtype import most_floats, saying_dtype
from converters.targets import TARGETS, Target, find_target
from converters.view import Cast, Made, Recipe, Subset, View, origins
from zoo.errors import (
    CaptureError,
    ConfigError,
    InputError,
    MissingFramework,
    SourceError,
    VerifyError,
    WeightsError,
    ZooError,
)
from zoo.graph.computed import COMPUTED, is_computed, sinusoids
from zoo.graph.key import Contradiction, contradictions, current
from zoo.registry import Entry, SourceRef, parse
from zoo.tolerances import ROUNDING
from zoo.written import RECORD, may_write, writing

if TYPE_CHECKING:
    from zoo.graph.ir import Graph, Node
    from zoo.sources import Progress

__all__ = ["Conversion", "convert", "verify_conversion"]


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
        notes: prefixes and wrappers that were taken off to reach the model's tensors; what readers of the new form
            compute differently; fields of the config that they ignore or replace by a nearly equal value.
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
    notes: list[str] = field(default_factory=list)

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
    raw: bool = False,
    mmap: bool = True,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write a model's checkpoint in another form, with its config and tokenizer beside it.

    Args:
        model: what `zoo.load` takes: a name, "hf://org/name", a folder, a file of weights.
        folder: a new or empty folder; it appears complete or not at all.
        to: one of `converters.targets.TARGETS`.
        task: for another head than the checkpoint's own.
        dtype: of the floating-point tensors: float32, bfloat16 or float16, and for GGUF q8_0. By default they keep
            their own. GGUF stores vectors and a few tables in float32 whatever is asked for.
        shard_size: largest size of a file in bytes, where the form has shards.
        dry_run: only tell what would be written.
        verify: open the written folder by itself, as `verify_conversion` does. Compare every tensor bit for bit after
            rounding to `dtype` (Q8_0: to within one rounding step), the files beside them, and the outputs.
        strict: a tensor that holds NaN is an error.
        overwrite: the folder may hold an earlier conversion. Files that its conversion.json lists, and that are
            unchanged since, are replaced; all others stay.
        raw: write the tensors alone, under the source's names and in its layouts, to safetensors, npz or torch. No
            config is needed or written, and `verify` compares every tensor.
        mmap: False reads the source's files into memory instead of mapping them. If another program cuts a mapped file
            short, the process ends (SIGBUS).
        offline: True uses only what is on this machine.
        progress: told (what, bytes done, bytes in all).

    Raises:
        WeightsError: tensors that neither the model nor the form has a place for; all are named.
        ConfigError: the folder holds other files, the source itself, or files that were changed since an earlier
            conversion; there is no such form, or not with this dtype; the form cannot say a field of the config, so
            that its readers would compute something else.
        VerifyError: the two ends differ.
        SourceError: the disk has not enough room, or cannot be written to; the folder is as it was.
    """
    from converters.checkpoint import unmapped
    from zoo.loading import fetch_checkpoint

    target = find_target(to)
    out = Path(folder)
    found = parse(model)
    if isinstance(found, SourceRef) and found.kind == "local":
        _keep_apart(Path(found.location), out)
    may_write(out, overwrite)
    place, _ = fetch_checkpoint(found, offline, progress)
    _keep_apart(place, out)
    if raw:
        if task is not None:
            raise ConfigError("tensors alone have no task", got=task, do="leave out the task, or --raw")
        with unmapped(not mmap):
            return _convert_raw(place, out, target, dtype, shard_size, dry_run, verify, strict, overwrite, progress)
    with ExitStack() as stack:
        stack.enter_context(unmapped(not mmap))
        plan = _plan(stack, place, found, target, task, dtype)
        result = plan.result
        if dry_run:
            return result
        _need_room(
            out, result.nbytes * (2 if target.with_graph else 1)
        )  # an archive's weights are a file of their own first
        with writing(out, overwrite) as (fresh, record):
            _companions(plan, fresh)
            watched = _Watched(plan.written, progress, strict)
            _write(fresh, target, watched, plan.config, plan.served, plan.texts, shard_size, plan.quantised)
            result.nans = watched.nans
            record |= _record(result, dtype, task)
            if verify:
                with _said_of(out, fresh):
                    result.verified = _verify(plan, fresh)
    result.folder = out
    return result


def verify_conversion(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> str:
    """Compare a converted folder, opened by itself, with the model that it was made of; what was compared.

    The folder's own config, tokenizer and tensors make its graph, as for a stranger who gets it. Where readers of the
    form do not look at config.json, the config is what such a reader computes.

    Args:
        model: what was given to `convert`.
        folder: what `convert` wrote.
        offline: as for `convert`.
        progress: as for `convert`.

    Raises:
        VerifyError: naming the tensor, the field, the file or the output that differs.
        ConfigError: `convert` did not write the folder.
        ZooError: the folder cannot be loaded.
    """
    from zoo.files import read_json
    from zoo.loading import fetch_checkpoint

    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise ConfigError("no conversion is recorded there", where=folder, expected=RECORD)
    record = read_json(folder / RECORD)
    found = parse(model)
    place, _ = fetch_checkpoint(found, offline, progress)
    with ExitStack() as stack:
        target = find_target(str(record.get("to")))
        if record.get("raw"):
            return _verify_raw(_raw_plan(stack, place, target, record.get("dtype"))[1], folder)
        plan = _plan(stack, place, found, target, record.get("task"), record.get("dtype"))
        return _verify(plan, folder)


def _convert_raw(
    place: Path,
    out: Path,
    target: Target,
    dtype: str | None,
    shard_size: int | None,
    dry_run: bool,
    verify: bool,
    strict: bool,
    overwrite: bool,
    progress: Progress | None,
) -> Conversion:
    """The tensors of a checkpoint as they are, in another format."""
    from zoo.graph.ir import Graph

    with ExitStack() as stack:
        file, tensors = _raw_plan(stack, place, target, dtype)
        dialect = dialect_of(file)
        result = Conversion(
            None,
            file.path,
            dialect.NAME if dialect else file.format,
            target.name,
            dict(zip(tensors.infos, tensors.infos, strict=True)),
            nbytes=sum(info.nbytes for info in tensors.infos.values()),
        )
        if dry_run:
            return result
        _need_room(out, result.nbytes)
        with writing(out, overwrite) as (fresh, record):
            watched = _Watched(tensors, progress, strict)
            plain = replace(target, metadata={}, shard_metadata=None)  # it says nothing of names and layouts
            _write(fresh, plain, watched, {}, Graph((), {}, {}, [], {}), {}, shard_size, ())
            result.nans = watched.nans
            record |= {**_record(result, dtype, None), "raw": True}
            if verify:
                with _said_of(out, fresh):
                    result.verified = _verify_raw(tensors, fresh)
    result.folder = out
    return result


def _raw_plan(stack: ExitStack, place: Path, target: Target, dtype: str | None) -> tuple[Checkpoint, Checkpoint]:
    """A checkpoint, and its tensors as they are to be written; `stack` closes them."""
    forms = [name for name, form in TARGETS.items() if form.dialect is None]
    if target.name not in forms:
        raise ConfigError(
            "this form has names and layouts of its own: it does not take tensors alone",
            expected=", ".join(forms),
            got=target.name,
            do="name one of these with --to, or leave out --raw",
        )
    file = stack.enter_context(open_checkpoint(place))
    file.check_reads()
    return file, Cast(file, target.stored(file, dtype))


@contextmanager
def _said_of(out: Path, fresh: Path) -> Iterator[None]:
    """What differs is said of the folder that was asked for, which is not written then."""
    try:
        yield
    except VerifyError as error:
        where = str(error.where).replace(str(fresh), str(out))
        do = error.do or "nothing was written; without --verify it is, as it is"
        raise VerifyError(error.what, where=where, expected=error.expected, got=error.got, do=do) from error


def _verify_raw(tensors: Checkpoint, folder: Path) -> str:
    """Read back what was written; what was compared.

    Raises:
        VerifyError: naming the first tensor that differs.
    """
    with open_checkpoint(folder) as back:
        if unlike := sorted(back.infos.keys() ^ tensors.infos.keys()):
            raise VerifyError("what was written has other tensors than the source", where=folder, got=unlike[0])
        for name, info in tensors.infos.items():
            if not _same(tensors, back, info):
                raise VerifyError("a tensor is not what it was", where=f"{folder}, tensor {name!r}")
    return "every tensor"


_ROOM = 1 << 24  # what the files beside the weights may take


@dataclass(slots=True)
class _Plan:
    """A conversion before anything is written.

    Args:
        place: the source, `raw` its file, opened.
        source: the source's config and the graph of it.
        config: what the written config follows from: the source's, but that it does not tie what the source has apart.
        graph: the graph of that.
        ours: the tensors under the names of the graph, `written` under the form's.
        served: the graph of what is written.
        quantised: the tensors that are stored as Q8_0.
        near: the fields that the form's reader has nearly as the config has them.
        texts: the tokenizer's files, for forms that hold it.
        beside: the files that the form's own readers have beside the weights.
    """

    target: Target
    place: Path
    raw: Checkpoint
    source: tuple[dict[str, Any], Graph]
    config: dict[str, Any]
    graph: Graph
    ours: Checkpoint
    written: Checkpoint
    served: Graph
    quantised: set[str]
    near: list[Contradiction]
    texts: Mapping[str, str]
    beside: Mapping[str, str]
    dtype: str | None
    result: Conversion


def _plan(
    stack: ExitStack, place: Path, found: Entry | SourceRef, target: Target, task: str | None, dtype: str | None
) -> _Plan:
    """What is to be written, as views of the source, which `stack` closes."""
    from zoo.loading import config_of
    from zoo.weights import as_saved, gathered, scattered
    from zoo.wrapping import unwrapped

    config = config_of(place, found)
    graph = _graph_of(config, task, place)
    if graph.meta.get("class"):
        config = {**config, "architectures": [graph.meta["class"]]}
    source = config, graph
    file = stack.enter_context(open_checkpoint(place))
    file.check_reads()
    opened = unwrapped(file, config, graph)
    raw, read = opened.raw, opened.read
    dialect = dialect_of(raw) if read is not raw else None
    whole = gathered(graph, read, as_published=read is raw)
    config, graph, whole = _untied(config, graph, whole, target)
    ours, served, gone, told = _in_graph_names(whole, graph, keep=target.dialect is None)
    ours, placed, homeless = _in_places(ours, served, target, config)
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
        {name: name if name in restored else ", ".join(origins(written, name)) for name in written.infos},
        {
            **gone,
            **homeless,
            **(dropped(dialect, raw.infos, _used(read, raw)) if read is not raw else {}),
            **opened.left,
            **dropped(target.dialect_module(), ours.infos, kept),
        },
        nbytes=sum(
            info.nbytes * 34 // 128 if name in quantised else info.nbytes  # a block of 32 values has 34 bytes
            for name, info in written.infos.items()
            if name not in written.aliases
        ),
    )
    theirs = target.understood(target.described(written, config), target.config(config))
    near, unheard = _unsaid(target, theirs, config, graph)
    texts = _tokenizer_texts(place if place.is_dir() else place.parent, raw) if target.with_tokenizer else {}
    unequal = (note(target.name, one) for one in (*near, *unheard))
    # a field that config.json leaves to its class has another default in other programs
    beside, lacking = target.beside({**graph.meta["config"]["fields"], **config})
    result.notes = [*opened.notes, *told, *unequal, *lacking, *target.notes(config, texts, written)]
    own = (place, raw, source, config, graph, ours, written, served, quantised, near, texts, beside, dtype, result)
    return _Plan(target, *own)


def _graph_of(config: Mapping[str, Any], task: str | None, place: Path | None = None) -> Graph:
    """The model's graph, or its names and shapes alone: one that cannot be captured can still be converted."""
    from zoo.configured import fitting, graph_for, need_torch

    try:
        return graph_for(config, task, "float32", place=place)
    except MissingFramework:
        need_torch(place)
        raise
    except CaptureError:
        from zoo.capture.huggingface import config_from, parameters_of

        size = None if place is None else fitting(config, place)
        return parameters_of(config_from(config), task, size=size)


def _untied(
    config: dict[str, Any], graph: Graph, checkpoint: Checkpoint, target: Target
) -> tuple[dict[str, Any], Graph, Checkpoint]:
    """The config, the graph and the tensors of a model whose config ties what its file has apart.

    Readers go by the config, and would take the embedding for the output layer: the config has to change. What else it
    ties is then apart, too, and written under each of its names.

    Raises:
        ConfigError: with the weights apart the config would say something else besides, as T5's does.
    """
    from zoo.weights import fit, untie

    apart = untie(graph, checkpoint)
    names = [name for name in apart.params if name not in graph.params]
    if not names or config.get("tie_word_embeddings") is False:
        return config, graph, checkpoint
    changed = {**config, "tie_word_embeddings": False}
    other = _graph_of(changed, None)
    record = graph.meta["config"]
    differing = [one for one in contradictions(changed, record) if one.field != "tie_word_embeddings"]
    if differing or any(name not in other.params for name in names):
        if target.dialect is None:
            return config, graph, checkpoint  # transformers 5 looks whether the file has them apart
        raise ConfigError(
            f"the config ties {', '.join(names)} and the file has it apart: {target.name} cannot say so",
            where=f"{checkpoint.path}, tie_word_embeddings",
            got=", ".join(f"with false, {one.field} would be {one.got!r}" for one in differing) or None,
            do="convert to safetensors",
        )
    first = {alias: param.name for param in apart.params.values() for alias in param.aliases}
    own = fit(apart, {name: info.shape for name, info in checkpoint.infos.items()}, checkpoint.path, strict=False).names
    copies = {
        name: Recipe(own[first[name]])
        for name in other.params
        if name not in own and first.get(name) in own and name not in checkpoint.infos
    }
    if copies:
        checkpoint = View(checkpoint, {**{name: Recipe(name) for name in checkpoint.infos}, **copies})
    return changed, other, checkpoint


def _in_graph_names(checkpoint: Checkpoint, graph: Graph, keep: bool) -> tuple[View, Graph, dict[str, str], list[str]]:
    """The tensors under the names that the model's class gives them, tied ones once; the graph of what they serve; what
    is left out and why; and what is to be said of those that are written.

    Args:
        keep: what the class does not use but another head may need is kept, under the name it has.
    """
    from zoo.weights import NOT_USED, OTHER_TASK, check_twins, fit, prune, untie

    graph = untie(graph, checkpoint)
    served = graph
    infos = checkpoint.infos
    dtypes = {name: info.dtype for name, info in infos.items()}
    fitted = fit(graph, {name: info.shape for name, info in infos.items()}, checkpoint.path, dtypes=dtypes)
    check_twins(checkpoint, fitted)
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
    kept = {name: why for name, why in fitted.unused.items() if name in recipes and why not in (NOT_USED, OTHER_TASK)}
    notes = fitted.notes() + [f"tensor {name!r} is written, and not used: {why}" for name, why in kept.items()]
    return View(checkpoint, recipes), served.keeping(recipes), gone, notes


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
    if target.unties(config):
        tied = {alias: name for name in ours.infos if name in graph.params for alias in graph.params[name].aliases}
        names |= {alias: name for alias, name in tied.items() if has_place(alias)}
    order = {name: number for number, name in enumerate(ours.infos)}
    names = dict(sorted(names.items(), key=lambda item: order[item[1]]))
    ours = Subset(ours, names.values())
    return ours, View(ours, {place: Recipe(name) for place, name in names.items()}), gone


def _unsaid(
    target: Target, theirs: Mapping[str, Any] | None, config: Mapping[str, Any], graph: Graph
) -> tuple[list[Contradiction], list[Contradiction]]:
    """The fields that the form's reader has nearly as the config has them, and those that it ignores.

    A field that changes nothing in this model's graph (what another head would have for an activation) is no matter.

    Args:
        theirs: the config as the form's reader has it, None if it honours config.json.

    Raises:
        ConfigError: the form cannot say a field, and its reader would compute something else; each is named.
    """
    if theirs is None:
        return [], []
    found = _otherwise(theirs, config, graph)
    near = _mattering([one for one in found if nearly(one)], config, graph)
    other = _mattering([one for one in found if not nearly(one)], config, graph)
    if not target.says_config:
        refuse(target.name, other)
    return near, other


def _otherwise(theirs: Mapping[str, Any], config: Mapping[str, Any], graph: Graph) -> list[Contradiction]:
    """The fields in which a config is not the graph's own: what that, too, leaves out of a nested one is no matter."""
    known = contradictions(config, graph.meta["config"])
    return [one for one in unsaid(theirs, graph.meta["config"]) if one not in known]


def _mattering(found: list[Contradiction], config: Mapping[str, Any], graph: Graph) -> list[Contradiction]:
    """Those fields with which the model would be another network; all where it cannot be captured."""
    if not found or not graph.nodes or _with_fields(config, found, graph) is None:
        return found
    if _alike(_with_fields(config, found, graph), graph):
        return []
    return [one for one in found if len(found) == 1 or not _alike(_with_fields(config, [one], graph), graph)]


def _with_fields(config: Mapping[str, Any], changes: list[Contradiction], graph: Graph) -> Graph | None:
    """The graph of a config with other values in some fields; None if there is none."""
    from zoo.configured import graph_for

    changed = current(config)
    for one in changes:
        changed = with_field(changed, one.field, one.got)
    try:
        return graph_for(changed, None, "float32")
    except ZooError:
        return None


def _alike(one: Graph | None, other: Graph) -> bool:
    """Whether two graphs are one network, under the same names."""
    if one is None:
        return False
    same_values = one.constants.keys() == other.constants.keys() and all(
        np.array_equal(value, other.constants[name]) for name, value in one.constants.items()
    )
    parts = [(g.inputs, g.params, [*map(_evaluated, g.nodes)], g.outputs) for g in (one, other)]
    return same_values and parts[0] == parts[1]


def _evaluated(node: Node) -> Node:
    """A node as evaluation has it: that an embedding's row is no token's (`padding_idx`) counts in training alone."""
    return replace(node, args=node.args[:2], kwargs={}) if node.op.partition(".")[0] == "embedding" else node


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
    texts: Mapping[str, str],
    limit: int | None,
    quantised: Collection[str],
) -> None:
    """The weights, in one file or in shards of at most `limit` bytes with their index."""
    infos = checkpoint.infos
    if limit is None or not target.sharded or sum(info.nbytes for info in infos.values()) <= limit:
        target.write(folder / target.file, checkpoint, config, graph, texts, quantised)
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


def _companions(plan: _Plan, folder: Path) -> None:
    """The files beside the weights, and those that follow from what the weights' own file says."""
    from zoo.sources.local import copy_companions

    copy_companions(plan.place if plan.place.is_dir() else plan.place.parent, folder)
    if not (folder / "tokenizer.json").is_file() and (tokenizer := derived_tokenizer(plan.raw)) is not None:
        (folder / "tokenizer.json").write_text(tokenizer, "utf-8")
        said = derived_tokenizer_config(plan.raw)
        if not (folder / "tokenizer_config.json").is_file() and said is not None:
            (folder / "tokenizer_config.json").write_text(said, "utf-8")
    config = json.dumps(_config_beside(plan), indent=2, ensure_ascii=False) + "\n"
    for name, text in {"config.json": config, **plan.beside}.items():
        (folder / name).write_text(text, "utf-8")


def _config_beside(plan: _Plan) -> Mapping[str, Any]:
    """config.json with the dtype that most of the file's numbers are stored in, if the conversion changed that."""
    config = plan.target.config(plan.config)
    if "model_type" not in config or plan.quantised:
        return config
    before, after = (most_floats(one.infos.values()) for one in (plan.ours, plan.written))
    said = after if plan.dtype is not None or before != after else None
    return saying_dtype(config, said, old=plan.target.dialect in ("hf_tf", "hf_flax"))


def _tokenizer_texts(source: Path, raw: Checkpoint) -> dict[str, str]:
    """The tokenizer's files by name, tokenizer.json as the tokenizers library spells it today; made where it lacks."""
    from zoo.tasks.text import tokenizer_in

    texts = {
        name: (source / name).read_text("utf-8")
        for name in TOKENIZER_FILES
        if name != "tokenizer.json" and (source / name).is_file()
    }
    found = tokenizer_in(source)
    text = derived_tokenizer(raw) if found is None else found.to_str()
    return texts if text is None else {**texts, "tokenizer.json": text}


def _record(result: Conversion, dtype: str | None, task: str | None) -> dict[str, Any]:
    return {
        "source": result.source.name,
        "from": result.dialect,
        "to": result.target,
        "dtype": dtype,
        "task": task,
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
    return {origin for name in view.infos for origin in origins(view, name, bottom)}


def _verify(plan: _Plan, folder: Path) -> str:
    """Open what was written by itself, and compare it with the source; what was compared.

    Raises:
        VerifyError: naming the first thing that differs.
        ZooError: what was written cannot be loaded.
    """
    own, graph = _as_read(plan, folder)
    exact = _same_tensors(plan, folder, own, graph)
    _same_files(plan, folder)
    compared = "every tensor"
    if plan.graph.nodes and graph.nodes:
        rounded = "" if exact and plan.dtype is None else plan.dtype or "float32"
        compared += _compare_outputs(plan, folder, own, graph, rounded)
    return compared


def _as_read(plan: _Plan, folder: Path) -> tuple[dict[str, Any], Graph]:
    """The config that a folder's reader has, from the folder alone, and the graph of it.

    The fields that are noted as nearly the same have the source's value.

    Raises:
        VerifyError: a field of it makes another network; each is named.
    """
    from zoo.loading import config_of

    own: dict[str, Any] = config_of(folder, parse(folder))
    with open_checkpoint(folder) as raw:
        theirs = plan.target.understood(raw, own)
        held = plan.target.graph(raw)
    if theirs is not None:
        own = dict(theirs)
        if not plan.target.says_config:  # without config.json nothing says of which class it is but the tensors
            own["architectures"] = [plan.graph.meta["class"]]
    found = _otherwise(own, plan.config, plan.graph)
    for one in plan.near:
        if one in found:
            own = with_field(current(own), one.field, one.expected)
    differing = _mattering([one for one in found if one not in plan.near], plan.config, plan.graph)
    if differing:
        raise VerifyError(
            "the config that is read there makes another network",
            where=f"{folder}, {', '.join(one.field for one in differing)}",
            expected="; ".join(repr(one.expected) for one in differing),
            got="; ".join(repr(one.got) for one in differing),
        )
    record = plan.graph.meta["config"]
    alike = contradictions(own, record) == contradictions(plan.config, record)
    same_class = (own.get("architectures") or [None])[0] == plan.graph.meta["class"]
    if held is not None:
        return own, held
    return own, plan.graph if alike and same_class else _graph_of(own, None)


def _same_tensors(plan: _Plan, folder: Path, own: dict[str, Any], graph: Graph) -> bool:
    """Read back what was written: every tensor must be the source's, rounded as it was stored.

    Args:
        own: the config of the folder, `graph` that of it.

    Returns:
        Whether each is the same bit for bit, but for the dtype's rounding.

    Raises:
        VerifyError: naming the first tensor that differs.
    """
    from zoo.weights import expected_shapes, gathered, untie

    ours, written = plan.ours, plan.written
    stored = {one: info.dtype for name, info in written.infos.items() for one in origins(written, name, ours)}
    lossy = {one for name in plan.quantised for one in origins(written, name, ours)}
    expected = Cast(Subset(ours, sorted(stored)), stored)
    all_exact = True
    with open_checkpoint(folder) as raw:
        read = canonical(raw, own, expected_shapes(graph))
        whole = gathered(graph, read, as_published=read is raw)
        apart = [name for name in untie(graph, whole).params if name not in graph.params]
        if apart and own.get("tie_word_embeddings") is not False and plan.target.dialect is not None:
            raise VerifyError(
                "the config ties what the file has apart", where=f"{folder}, tensor {apart[0]!r}", got=", ".join(apart)
            )
        back, _, _, _ = _in_graph_names(whole, graph, keep=True)
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


def _same_files(plan: _Plan, folder: Path) -> None:
    """The files beside the weights must be what they were, the tokenizer's above all.

    Raises:
        VerifyError: naming the file, and of config.json the fields.
    """
    from zoo.files import read_json

    with TemporaryDirectory() as made:
        _companions(plan, Path(made))
        for path in sorted(path for path in Path(made).rglob("*") if path.is_file()):
            name = path.relative_to(made).as_posix()
            written = folder / name
            if not written.is_file():
                raise VerifyError("a file is not in what was written", where=written)
            if written.read_bytes() != path.read_bytes():
                fields = ""
                if name == "config.json":
                    one, other = read_json(path), read_json(written)
                    fields = ", ".join(k for k in sorted({*one, *other}) if one.get(k) != other.get(k))
                raise VerifyError("a file is not what it was", where=written, got=fields or None)


def _compare_outputs(plan: _Plan, folder: Path, own: dict[str, Any], graph: Graph, rounded: str) -> str:
    """Both ends on the float64 reference: equal as `CONVERTED` has it for the dtype that weights were rounded to.

    Returns:
        What was compared, and what was not.
    """
    from zoo.loading import assemble
    from zoo.samples import fitting
    from zoo.tolerances import CONVERTED, VACUOUS

    config, first = plan.source
    one = assemble(str(plan.place), "numpy", first, plan.place, config, True)
    other = assemble(str(folder), "numpy", graph, folder, own, True)
    try:
        inputs, left = fitting(one, lambda drawn: one(**drawn))
    except InputError as error:
        raise VerifyError("the outputs cannot be compared", where=plan.place, got=error) from error
    right = other(**inputs)
    limit = CONVERTED[rounded]
    compared: list[str] = []
    constant: list[str] = []
    missing = [name for name in left if name not in right]
    if next(iter(left)) in missing:
        raise VerifyError(
            "the converted model lacks the main output", where=folder, expected=next(iter(left)), got=", ".join(right)
        )
    for name, value in left.items():
        if name in missing:
            continue  # it needs a tensor that the form has no place for, and that is said
        where = f"{folder}, output {name!r}"
        if np.shape(value) != np.shape(right[name]):
            raise VerifyError(
                "an output has another shape", where=where, expected=np.shape(value), got=np.shape(right[name])
            )
        finite = np.asarray(value)[np.isfinite(value)]
        scale = float(np.abs(finite).max(initial=0.0))
        with np.errstate(invalid="ignore"):  # weights that hold NaN or infinity make outputs that do, at both ends
            apart = np.abs(np.asarray(value, np.float64) - right[name])
        apart[(value == right[name]) | (np.isnan(value) & np.isnan(right[name]))] = 0
        worst = float(apart.max(initial=0.0)) / (scale or 1.0)
        if not worst <= limit:
            raise VerifyError(
                "the converted model computes something else",
                where=where,
                expected=f"a relative difference of at most {limit:g}",
                got=f"{worst:.3g}",
            )
        varies = finite.size > 1 and float(np.std(np.asarray(finite, np.float64))) > VACUOUS * scale
        (compared if varies or (finite.size == 1 and scale) else constant).append(name)
    lines = " and the outputs" if compared else ""
    lines += f"; {', '.join(constant)} is constant, which says nothing" if constant else ""
    return lines + (f"; {', '.join(missing)} is not there" if missing else "")


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
