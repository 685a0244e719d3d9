"""Capture of transformers models from their config alone: no weight is read or initialised.

May import `zoo.graph`, `zoo.ops` and the rest of `zoo.capture`. What is true of some model types alone is a row of
special_cases.json, never a name in code.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch.utils import _pytree as pytree

from zoo.capture.huggingface.classes import build, config_from, model_class, native_module, parts_of, quiet
from zoo.capture.huggingface.each_image import COUNTS, any_number, counting_axis, each_by_itself, is_counted
from zoo.capture.huggingface.inputs import example_inputs, prepared_inputs
from zoo.capture.huggingface.limits import Bounded, Size, refusing, without_hub
from zoo.capture.huggingface.names import named
from zoo.capture.huggingface.patched import export_patched, fixing
from zoo.capture.rewrites import rewritten
from zoo.capture.torch_export import ReadsValues, capture_program, dim_name, export, ties_of
from zoo.capture.training import mode
from zoo.errors import CaptureError
from zoo.graph.facts import Facts
from zoo.graph.ir import Graph, Param
from zoo.special_cases import special_case

__all__ = ["build", "capture_config", "config_from", "model_class", "native_module", "parameters_of"]


def capture_config(
    config: transformers.PretrainedConfig,
    task: str | None = None,
    dtype: str = "float32",
    *,
    train: bool = False,
    length: int | None = None,
    size: Size | None = None,
) -> Graph:
    """The graph of a transformers model, from its config; with `train` it keeps dropout, at the config's rates.

    Args:
        length: how many tokens the example's texts have: for models of which a graph holds for no other.
        size: of the checkpoint that it is for; a config that asks for much more is refused.

    Raises:
        ConfigError: the config's fields do not make a model, or one too large for the checkpoint.
        CaptureError: torch.export refuses the model, with and without transformers' own export patches, or no inputs of
            a reasonable size follow from the config.
    """
    config = copy.deepcopy(config)
    for part in parts_of(config):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    cls = model_class(config, task)

    def inputs_of(module: Any, count: int) -> dict[str, torch.Tensor]:
        fields = config.to_dict()
        with refusing(fields, "no inputs follow from the config", CaptureError), Bounded(fields, None, CaptureError):
            return example_inputs(module, dtype, batch=count, length=length or 6 + _chunk(config))

    def capturing(count: int, one: Mapping[str, torch.Tensor] | None = None) -> Capture:
        module = build(config, cls, dtype, tied=False, size=size)
        return Capture(module, inputs_of(module, count), count, config, train, one)

    with without_hub():
        return _captured(config, task, dtype, capturing, inputs_of)


def parameters_of(
    config: transformers.PretrainedConfig,
    task: str | None = None,
    dtype: str = "float32",
    *,
    size: Size | None = None,
) -> Graph:
    """A graph of a model's parameters alone: what a checkpoint of it holds, for models that cannot be captured.

    Arguments and errors as those of `capture_config`.
    """
    cls = model_class(config, task)
    ties = ties_of(build(config, cls, dtype, size=size))
    module = build(config, cls, dtype, tied=False, size=size)
    trainable = {name for name, tensor in module.named_parameters() if tensor.requires_grad}
    params = {}
    for name, tensor in module.state_dict().items():
        if name not in ties:
            aliases = tuple(other for other, first in ties.items() if first == name)
            kind = str(tensor.dtype).removeprefix("torch.")
            params[name] = Param(name, kind, tuple(tensor.shape), name in trainable, aliases)
    return named(Graph((), params, {}, [], {}), module, config, task, dtype)


def _captured(config: Any, task: str | None, dtype: str, capturing: Any, inputs_of: Any) -> Graph:
    """The graph of any number of images where there is one, else that of the number of the example."""
    first = capturing(COUNTS[0])
    one = None
    if any(not _is_text(name, value, first.inputs) for name, value in first.inputs.items()):
        with suppress(Exception):  # it takes no single one
            one = inputs_of(first.module, 1)
    graph, refused = None, None
    try:
        graph = first.graph()
    except CaptureError as error:
        refused = error
    if one is not None and (graph is None or _fixes_number(graph, one, first.inputs)):
        try:
            graph = _of_any_number([capturing(count, one).graph() for count in COUNTS], graph)
        except Exception as error:  # whatever the traced code raises
            logging.getLogger(__name__).debug("no other number of images: %s; %s", error, error.__cause__)
    if graph is None:
        raise refused or AssertionError
    first.module.tie_weights()
    return named(graph, first.module, config, task, dtype)


def _fixes_number(graph: Graph, one: Mapping[str, torch.Tensor], several: Mapping[str, torch.Tensor]) -> bool:
    """Whether a graph takes only as many images as its example has: sizes are part of it, or a dim that counts them."""
    shapes = {item.name: item.shape for item in graph.inputs}
    if any(name in _GEOMETRY and name not in shapes for name in several):
        return True
    axes = {name: counting_axis(one[name], value) for name, value in several.items() if name in shapes}
    return any(axis is not None and isinstance(shapes[name][axis], int) for name, axis in axes.items())


def _of_any_number(graphs: Sequence[Graph], fixed: Graph | None) -> Graph:
    """The graph of any number of images, if its outputs are those of the graph of one number alone."""
    names = [item.name for item in graphs[0].inputs]
    found = any_number(graphs, lambda name, axis, ndim: dim_name(name, axis, ndim, names)[0])
    expected, got = ({} if graph is None else _output_shapes(graph) for graph in (fixed, graphs[0]))
    if fixed is not None and not (expected.keys() == got.keys() and all(map(_agree, expected.values(), got.values()))):
        raise CaptureError("what is computed of each image is not that of all", expected=expected, got=got)
    return found


def _output_shapes(graph: Graph) -> dict[str, Any]:
    facts = Facts(graph)
    made = {name: ref.name for name, ref in sorted(graph.outputs.items()) if ref.name in facts.makers}
    return {name: facts.infos[value].shape for name, value in made.items()}


def _agree(some: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether dims are the same, as far as they are numbers."""
    if len(some) != len(other):
        return False
    return all(a == b for a, b in zip(some, other, strict=True) if isinstance(a, int) and isinstance(b, int))


@dataclass
class Capture:
    """A module's capture, in the ways that there are.

    Args:
        count: how many rows its inputs have.
        one: inputs of one image, if each image is to be computed by itself; sizes of images are then fixed.
    """

    module: transformers.PreTrainedModel
    inputs: Mapping[str, torch.Tensor]
    count: int
    config: Any
    train: bool
    one: Mapping[str, torch.Tensor] | None = None

    def graph(self) -> Graph:
        with quiet(), mode(self.module, self.train) as self.without, rewritten(self.module) as self.rewrites:
            return self.of_some_export()

    def of_some_export(self) -> Graph:
        """Plain export's, or else that of what is tried where that is refused."""
        program = None
        try:
            program = self.export(self.inputs)
            return self.captured(program)
        except CaptureError as first:
            try:
                return self.otherwise(first)
            except CaptureError:
                if program is None or not isinstance(first, ReadsValues):
                    raise
                return self.captured(program, reading=True)

    def otherwise(self, first: CaptureError) -> Graph:
        """What plain export refuses: without masks of ones, if there were any; else under transformers' patches, with
        what those want computed before, or with the sizes of images as part of the graph, which then holds for as many
        images of those sizes; then with all that follows from these sizes as part of it, too, and at last with which
        moments of sounds are padding.
        """
        if self.rewrites.masked:
            self.rewrites.unmasked = True
            try:
                return self.captured(self.export(self.inputs))
            except CaptureError:
                self.rewrites.unmasked = False
        second: Exception = first
        for finding in (None, _sizes, _of_sizes, _of_sounds):
            try:
                prepared = prepared_inputs(self.module, self.inputs)
                fixed = {name: prepared.pop(name) for name in finding(self.module, self.inputs)} if finding else None
                return self.captured(self.export_patched(prepared, fixed, finding in (_of_sizes, _of_sounds)))
            except Exception as error:
                second = error
        raise first from second

    def export(self, inputs: Mapping[str, torch.Tensor]) -> torch.export.ExportedProgram:
        with self.apart(self.one, inputs):
            return export(self.module, inputs, self.dynamic(inputs))

    def export_patched(
        self, inputs: Mapping[str, Any], fixed: Mapping[str, Any] | None, of_one_size: bool
    ) -> torch.export.ExportedProgram:
        """Under transformers' patches, with some of the inputs fixed, and what follows from them and from the module's
        buffers alone; None fixes nothing.
        """
        dynamic = self.dynamic(inputs)
        if fixed is not None:
            dynamic = {name: _STATIC.get(name, axes) for name, axes in dynamic.items()}
        if of_one_size:
            dynamic = {name: _of_one_size(name, axes) for name, axes in dynamic.items()}
        one = None if self.one is None else prepared_inputs(self.module, self.one)
        if one and not all(is_counted(one.get(name), value, self.count) for name, value in inputs.items()):
            raise CaptureError("an input is not so many times as long as that of one image", got=", ".join(inputs))
        following = nullcontext() if fixed is None else fixing(self.module, fixed)
        with self.apart(one, {**inputs, **(fixed or {})}), following:
            return export_patched(self.module, inputs, dynamic)

    def captured(self, program: torch.export.ExportedProgram, reading: bool = False) -> Graph:
        """The graph of an exported program whose weights are the module's, tied as those are."""
        module = self.module
        module.tie_weights()
        return capture_program(program, ties_of(module), train=self.train, without=self.without, reading=reading)

    def apart(self, one: Mapping[str, Any] | None, several: Mapping[str, Any]) -> Any:
        """Each image computed by itself, if that is asked for."""
        return nullcontext() if one is None else each_by_itself(self.module, one, several, self.count)

    def dynamic(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Which dims may vary: none of an image's, nor their number, where each is computed by itself."""
        found = _dynamic(inputs, self.config)
        for name, value in inputs.items() if self.one is not None else ():
            if isinstance(value, torch.Tensor) and not _is_text(name, value, inputs):
                found[name] = dict.fromkeys(range(value.ndim), torch.export.Dim.STATIC)
        return found


def _is_text(name: str, value: torch.Tensor, inputs: Mapping[str, Any]) -> bool:
    """Whether an input has something for each token."""
    ids = inputs.get("input_ids")
    if ids is None or name.startswith(("pixel", "image")):
        return False
    return value.shape[: ids.ndim] == ids.shape or value.shape[-ids.ndim :] == ids.shape


def _sizes(_: Any, inputs: Mapping[str, Any]) -> list[str]:
    """Which of the inputs say how large images are."""
    return [name for name in _GEOMETRY if name in inputs]


def _of_sizes(module: Any, inputs: Mapping[str, Any]) -> list[str]:
    """Those and what follows from them, whatever the images show: which patches are padding, and what transformers
    computes of sizes. A model's positions of text with images in it depend on the text as well.
    """
    sizes = {name: inputs[name] for name in _sizes(module, inputs)}
    if "spatial_shapes" in sizes and "pixel_attention_mask" in inputs:
        sizes["pixel_attention_mask"] = inputs["pixel_attention_mask"]
    text = {"position_ids": inputs["input_ids"]} if "input_ids" in inputs else {}
    return [name for name in prepared_inputs(module, {**sizes, **text}) if name not in text]


def _of_sounds(module: Any, inputs: Mapping[str, Any]) -> list[str]:
    """Those, and which moments of sounds are padding and what transformers computes of that."""
    names = [name for name in _PADDING if name in inputs]
    if not names:
        raise CaptureError("no mask says how long sounds are", got=", ".join(inputs))
    sounds = {name: inputs[name] for name in (*names, "input_features")}
    prepared = [name for name in prepared_inputs(module, sounds) if name not in ("input_features", "position_ids")]
    return list(dict.fromkeys([*_of_sizes(module, inputs), *prepared]))


_PADDING = ("input_features_mask", "feature_attention_mask")


def _of_one_size(name: str, axes: Any) -> Any:
    """Dims of which an image's own are fixed; how many images there are is not."""
    if not name.startswith("pixel_values") or len(axes) < 4:
        return axes
    return {axis: torch.export.Dim.STATIC if axis else dim for axis, dim in axes.items()}


_GEOMETRY = ("image_grid_thw", "grid_thw", "image_grid_hw", "image_sizes", "target_sizes", "spatial_shapes",
             "image_merge_sizes", "merge_sizes")  # fmt: skip
"""Inputs that say how large images are, and nothing else."""

_WAVE = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.STATIC, 2: torch.export.Dim.STATIC}

_STATIC = {"input_values": _WAVE, "padding_mask": _WAVE}
"""Sounds whose length decides how codecs pad them."""


def _dynamic(inputs: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Every dim dynamic, save a box's four corners and the image sides of windowed models, whose padding makes the
    tracer's sizes explode.
    """
    windowed = any(
        any(hasattr(part, name) for name in ("window_size", "window_size_per_stage"))
        and (hasattr(part, "image_size") or hasattr(part, "patch_size"))
        for part in parts_of(config)
    )
    fixed: dict[str, tuple[int, ...]] = {"bbox": (2,)}
    if windowed or config.model_type in special_case("image scale traced"):
        fixed["pixel_values"] = (2, 3)
    static, auto = torch.export.Dim.STATIC, torch.export.Dim.AUTO
    return {
        name: {axis: static if axis in fixed.get(name, ()) else auto for axis in range(value.ndim)}
        if isinstance(value, torch.Tensor)
        else pytree.tree_map(lambda _: None, value)
        for name, value in inputs.items()
    }


def _chunk(config: Any) -> int:
    """How many tokens a state-space model scans at a time: of a single chunk torch.export takes the count as fixed."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    sizes = (getattr(text, name, None) for name in ("mamba_chunk_size", "chunk_size"))
    return next((size for size in sizes if isinstance(size, int)), 0)
