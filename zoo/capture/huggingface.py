"""Capture of transformers models from their config alone: no weight is read or initialised.

Source: transformers 5.23; which class serves a task is its own auto-class tables' business.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from zoo.capture.alike import COUNTS, any_number, counting_axis, each_by_itself, is_counted, is_traced
from zoo.capture.inputs import example_inputs, prepared_inputs
from zoo.capture.plausible import Bounded, Size, harmless, refusing, without_hub
from zoo.capture.rewrites import rewritten
from zoo.capture.stored import conversions
from zoo.capture.torch_export import ReadsValues, capture_program, dim_name, export, ties_of, traceable
from zoo.capture.training import mode
from zoo.errors import CaptureError, ConfigError
from zoo.graph.computed import is_computed, sinusoids
from zoo.graph.ir import Graph, Input, Param, Ref, map_refs, param_ref
from zoo.graph.key import shaping
from zoo.graph.stored import Stored
from zoo.tasks import TASKS, task_name

__all__ = ["build", "capture_config", "config_from", "model_class", "native_module", "parameters_of"]


def config_from(fields: Mapping[str, Any]) -> transformers.PretrainedConfig:
    """The transformers config of a config.json's fields.

    Raises:
        ConfigError: no model_type, one that the installed transformers does not know, or fields it refuses.
    """
    model_type = fields.get("model_type")
    if model_type is None:
        raise ConfigError(
            "the config does not say what kind of model it is of",
            where="config.json, model_type",
            expected="one of the types of transformers, such as bert",
            got=f"no model_type, but {', '.join(map(str, list(fields)[:8]))}" if fields else "an empty config",
            do="take the config.json that the model was published with, or capture the module with zoo.capture; "
            "tensors alone are written by `zoo convert --raw`",
        )
    known = isinstance(model_type, str) and model_type in transformers.CONFIG_MAPPING
    if not known and "auto_map" in fields:
        raise ConfigError(
            "the model is code of its own, which is never run",
            where="config.json, auto_map",
            got=model_type,
            do="if you trust its authors, build it with transformers and trust_remote_code=True, "
            "and capture the module with zoo.capture",
        )
    if not known:
        raise ConfigError(
            "transformers does not know this kind of model",
            where="config.json, model_type",
            got=model_type,
            do=f"if the type is right, install a transformers newer than {transformers.__version__}; "
            "a module of your own is captured with zoo.capture",
        )
    names = fields.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ConfigError("not a list of classes", where="config.json, architectures", got=names)
    fields = harmless(fields)
    with refusing(fields, "transformers refuses the config"), without_hub():
        return _from_fields(transformers.CONFIG_MAPPING[model_type], fields)


def model_class(config: transformers.PretrainedConfig, task: str | None) -> type[transformers.PreTrainedModel]:
    """The class that serves `task`, or without one the class the checkpoint was saved for, else the base model.

    Raises:
        ConfigError: transformers has no class of this kind of model for the task.
    """
    if task is None:
        for name in config.architectures or ():
            found = getattr(transformers, name, None)
            if inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel):
                return found
        task = _task_of_class(next(iter(config.architectures or ()), "Model"))
    found = _serving(config, task_name(task))
    if found is not None:
        return found
    served = sorted(name for name in TASKS if _serving(config, name) is not None)
    raise ConfigError(
        f"{config.model_type} has no class for the task {task!r}", expected=", ".join(served), do="pass one of these"
    )


def _serving(config: transformers.PretrainedConfig, task: str) -> type[transformers.PreTrainedModel] | None:
    """The first class for the task; None where there is none, or transformers lists one that it does not have."""
    for auto in TASKS[task]:
        try:
            found = getattr(transformers, auto)._model_mapping[type(config)]
        except (KeyError, ValueError):
            continue
        return found[0] if isinstance(found, (tuple, list)) else found
    return None


def _task_of_class(name: str) -> str:
    """The task of a class that this transformers does not have, such as Flax's BertForCausalLM."""
    for ending, task in _ENDINGS.items():
        if name.endswith(ending):
            return task
    raise ConfigError(
        "transformers has no such class of model",
        where="config.json, architectures",
        got=name,
        do='say what to load it for: task="feature-extraction", for the model without a head',
    )


_ENDINGS = {
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "semantic-segmentation",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
    "Model": "feature-extraction",
}


def build(
    config: transformers.PretrainedConfig,
    cls: type[transformers.PreTrainedModel],
    dtype: str = "float32",
    *,
    tied: bool = True,
    size: Size | None = None,
) -> transformers.PreTrainedModel:
    """The module with its buffers computed and its parameters' memory reserved but never touched.

    Unlike construction on the meta device this keeps the values of buffers that no checkpoint holds (rotary tables,
    position ids), and costs memory only for those. With `tied` False parameters that the class ties are apart, so that
    each use of one can be told from the uses of the others.

    Args:
        size: of the checkpoint that it is for, which bounds what is made.

    Raises:
        ConfigError: the config's fields do not make a model, or one too large for the checkpoint.
    """
    from transformers.initialization import no_init_weights

    fields = config.to_dict()
    bounds = nullcontext() if size is None else Bounded(fields, size)
    with refusing(fields, "transformers cannot build a model of the config"), without_hub():
        with _quiet(), no_init_weights(), bounds:
            module = cls._from_config(config, dtype=getattr(torch, dtype))
        if tied:
            module.tie_weights()
    return module.eval()


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
    import copy

    config = copy.deepcopy(config)
    for part in _parts(config):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    cls = model_class(config, task)

    def inputs_of(module: Any, count: int) -> dict[str, torch.Tensor]:
        fields = config.to_dict()
        with refusing(fields, "no inputs follow from the config", CaptureError), Bounded(fields, None, CaptureError):
            return example_inputs(module, dtype, batch=count, length=length or 6 + _chunk(config))

    def capturing(count: int, one: Mapping[str, torch.Tensor] | None = None) -> _Capture:
        module = build(config, cls, dtype, tied=False, size=size)
        return _Capture(module, inputs_of(module, count), count, config, train, one)

    with without_hub():
        return _captured(config, task, dtype, capturing, inputs_of)


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
    return _named(graph, first.module, config, task, dtype)


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
    infos = {name: info for node in graph.nodes for name, info in zip(node.outputs, node.infos, strict=True)}
    return {name: infos[ref.name].shape for name, ref in sorted(graph.outputs.items()) if ref.name in infos}


def _agree(some: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether dims are the same, as far as they are numbers."""
    if len(some) != len(other):
        return False
    return all(a == b for a, b in zip(some, other, strict=True) if isinstance(a, int) and isinstance(b, int))


@dataclass
class _Capture:
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
        with _quiet(), mode(self.module, self.train) as self.without, rewritten(self.module) as self.rewrites:
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
        for fixing in (None, _sizes, _of_sizes, _of_sounds):
            try:
                prepared = prepared_inputs(self.module, self.inputs)
                fixed = {name: prepared.pop(name) for name in fixing(self.module, self.inputs)} if fixing else None
                return self.captured(self.export_patched(prepared, fixed, fixing in (_of_sizes, _of_sounds)))
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
        fixing = nullcontext() if fixed is None else _fixing(self.module, fixed)
        with self.apart(one, {**inputs, **(fixed or {})}), fixing:
            return _export_patched(self.module, inputs, dynamic)

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
    return _named(Graph((), params, {}, [], {}), module, config, task, dtype)


def native_module(
    config: transformers.PretrainedConfig,
    class_name: str,
    params: Mapping[str, torch.nn.Parameter],
    renamed: Mapping[str, str],
) -> transformers.PreTrainedModel:
    """The transformers module over the given parameters, which it shares.

    Args:
        params: by canonical name.
        renamed: canonical name -> the module's own, where they differ.
    """
    cls = getattr(transformers, class_name)
    dtype = next(tensor.dtype for tensor in params.values() if tensor.is_floating_point())
    module = build(config, cls, str(dtype).removeprefix("torch."))
    own = {renamed.get(name, name): tensor for name, tensor in params.items()}
    for name, tensor in own.items():
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        if leaf in owner._parameters:
            trained = isinstance(tensor, torch.nn.Parameter)
            owner._parameters[leaf] = tensor if trained else torch.nn.Parameter(tensor, requires_grad=False)
        else:
            owner._buffers[leaf] = tensor.detach()
    # names that were given arrays of their own stay apart; the others are tied to them
    module.tie_weights(missing_keys=set(module.state_dict()) - set(own), recompute_mapping=False)
    return module


def _named(graph: Graph, module: Any, config: Any, task: str | None, dtype: str) -> Graph:
    """The graph with checkpoint names for its parameters, defaults for optional inputs, and the facts of its origin."""
    canonical, groups = _conversions(module)
    params = {}
    renamed = {}
    for param in graph.params.values():
        name = canonical.get(param.name, param.name)
        aliases = tuple(canonical.get(alias, alias) for alias in param.aliases)
        params[name] = replace(param, name=name, aliases=aliases)
        if name != param.name:
            renamed[name] = param.name
    graph = _rename_params(graph, params, canonical)
    graph = _with_stored(_with_computed(graph, module, renamed), groups)
    inputs = tuple(_with_default(item) for item in graph.inputs)
    fields = _plain(shaping(config.to_dict()))
    meta = {
        **graph.meta,
        "transformers": transformers.__version__,
        "class": type(module).__name__,
        "model_type": config.model_type,
        "task": task_name(task) if task else _task_of(type(module), config),
        "dtype": dtype,
        "prefix": module.base_model_prefix,
        "unexpected": sorted(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()),
        "renamed": renamed,
        "config": {
            "fields": fields,
            "defaults": _defaults(type(config), fields),
            "aliases": dict(config.attribute_map),
        },
    }
    if legacy := _legacy_names(module):
        meta["legacy"] = legacy
    if tables := _sinusoidal(graph, module, renamed):
        meta["sinusoids"] = tables
    return replace(graph, inputs=inputs, meta=meta)


def _with_computed(graph: Graph, module: Any, renamed: dict[str, str]) -> Graph:
    """The graph with buffers that follow from the config (rotary tables) as constants: checkpoints may lack them."""
    from zoo.arrays import to_numpy

    buffers = dict(module.named_buffers())
    computed = {
        name: renamed.pop(name, name)
        for name, param in graph.params.items()
        if is_computed(name) and not param.trainable and renamed.get(name, name) in buffers and graph.uses(name)
    }
    if not computed:
        return graph
    constants = {f"c:{own}": to_numpy(buffers[own]).copy() for own in computed.values()}
    to = {param_ref(name): f"c:{own}" for name, own in computed.items()}
    graph = _rename_values(graph, to)
    params = {name: param for name, param in graph.params.items() if name not in computed}
    return replace(graph, params=params, constants={**graph.constants, **constants})


def _sinusoidal(graph: Graph, module: Any, renamed: Mapping[str, str]) -> list[str]:
    """The parameters that the class initialises as a table of sinusoids and does not train: files may lack them."""
    own = dict(module.named_parameters())
    found = []
    for name, param in graph.params.items():
        tensor = own.get(renamed.get(name, name))
        if tensor is None or tensor.requires_grad or len(param.shape) != 2:
            continue
        module._init_weights(module.get_submodule(renamed.get(name, name).rpartition(".")[0]))
        if np.array_equal(tensor.detach().float().numpy(), sinusoids(param.shape)):
            found.append(name)
    return found


def _legacy_names(module: Any) -> list[list[str]]:
    """(pattern, replacement) for what checkpoints of this very class may be called otherwise: prefixes that only older
    ones have, and what transformers itself writes where it misnames.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    changes = get_checkpoint_conversion_mapping(type(module).__name__) or ()
    prefixes = [[c.source_patterns[0], c.target_patterns[0]] for c in changes if isinstance(c, PrefixChange)]
    return [*prefixes, *map(list, _MISNAMED.get(type(module).__name__, ()))]


def _rename_params(graph: Graph, params: dict[str, Any], canonical: Mapping[str, str]) -> Graph:
    graph = _rename_values(graph, {param_ref(old): param_ref(new) for old, new in canonical.items()})
    return replace(graph, params=params)


def _rename_values(graph: Graph, to: Mapping[str, str]) -> Graph:
    def current(ref: Ref) -> Ref:
        return Ref(to.get(ref.name, ref.name))

    nodes = [replace(n, args=map_refs(current, n.args), kwargs=map_refs(current, n.kwargs)) for n in graph.nodes]
    outputs = {name: current(ref) for name, ref in graph.outputs.items()}
    return replace(graph, nodes=nodes, outputs=outputs)


def _conversions(module: Any) -> tuple[dict[str, str], list[Stored]]:
    """How the class's checkpoints hold its parameters, where transformers converts on loading: the module's name -> the
    checkpoint's, and what is rearranged.
    """
    from transformers.core_model_loading import revert_weight_conversion

    state = module.state_dict()
    try:
        renamed, groups = conversions(lambda tensors: revert_weight_conversion(module, tensors), state)
    except Exception as error:
        # arithmetic, or tensors that only a checkpoint has: names stay the module's
        logging.getLogger(__name__).debug("no conversion of %s: %s", type(module).__name__, error)
        return {}, []
    misnamed = _MISNAMED.get(type(module).__name__, ())
    names = {own: _published(name, misnamed) for own, name in renamed.items()}
    return {own: name for own, name in names.items() if own != name}, groups


def _with_stored(graph: Graph, groups: Sequence[Stored]) -> Graph:
    """The graph with what of its parameters is stored otherwise; a tied parameter is stored once."""
    first = {name: param.name for param in graph.params.values() for name in (param.name, *param.aliases)}
    kept, seen = [], set[str]()
    for group in groups:
        params = tuple(first.get(name, "") for name in group.params)
        if params and all(params) and len(set(params)) == len(params) and seen.isdisjoint(params):
            kept.append(replace(group, params=params))
            seen.update(params)
    return replace(graph, stored=tuple(kept))


_MISNAMED: Mapping[str, tuple[tuple[str, str], ...]] = {
    # The way back of ViT's "encoder.layer" -> "layers" also takes hold of the decoder's.
    "ViTMAEForPreTraining": ((r"decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),),
    # BEiT's heads have their published names in transformers' tables, this copy of them has not.
    "Data2VecVisionForSemanticSegmentation": (
        (r"psp_modules\.blocks\.(\d+)\.conv\.convolution\.", r"psp_modules.\1.1.conv."),
        (r"psp_modules\.blocks\.(\d+)\.conv\.normalization\.", r"psp_modules.\1.1.bn."),
        (r"psp_bottleneck\.convolution\.", "bottleneck.conv."),
        (r"psp_bottleneck\.normalization\.", "bottleneck.bn."),
        (r"(convs\.\d+|fpn_bottleneck)\.convolution\.", r"\1.conv."),
        (r"(convs\.\d+|fpn_bottleneck)\.normalization\.", r"\1.bn."),
    ),
}
"""Class -> (pattern of what transformers 5.23 calls a tensor when it saves it, the name in published checkpoints); at
most one pattern is for a name.
"""


def _published(name: str, misnamed: tuple[tuple[str, str], ...]) -> str:
    return next((new for pattern, to in misnamed if (new := re.sub(pattern, to, name)) != name), name)


def _with_default(item: Input) -> Input:
    """Masks default to "everything", token types to the first."""
    if item.name.endswith("attention_mask"):
        return replace(item, default=1)
    return replace(item, default=0) if item.name == "token_type_ids" else item


def _task_of(cls: type, config: Any) -> str:
    """The task a class is for; one that serves several (BART fills masks, too) is named by what it generates."""
    served = []
    for task, autos in TASKS.items():
        for auto in autos:
            found = getattr(transformers, auto)._model_mapping.get(type(config), None)
            if found is cls or (isinstance(found, (tuple, list)) and cls in found):
                served.append(task)
    generating = [task for task in ("text2text-generation", "automatic-speech-recognition") if task in served]
    return (generating or served or ["feature-extraction"])[0]


def _export_patched(module: Any, inputs: Mapping[str, Any], dynamic: Any) -> torch.export.ExportedProgram:
    """torch.export under the patches of transformers.exporters, which take out what the tracer cannot follow."""
    from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

    exporter = DynamoExporter()
    settings = DynamoConfig(dynamic=True, dynamic_shapes=dynamic, strict=False)
    with _packed_attention(module), traceable(module):
        program, _ = exporter.export_program(module, dict(inputs), settings)
    return program


_PACKED = "flash_packed"  # the classes hand over whole sequences and their bounds to what is called flash


@contextmanager
def _packed_attention(module: Any) -> Any:
    """Images and sounds packed into one sequence attend through a mask that keeps them apart.

    The classes' own loop over them cannot be traced, and transformers' patch for it holds only for parts of one length
    and leaves out GLM-OCR's norms of queries and keys.
    """
    from transformers.exporters import exporter_dynamo, utils
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    takes = [m for m in module.modules() if "cu_seqlens" in inspect.signature(m.forward).parameters]
    configs = {id(m.config): m.config for m in takes if hasattr(m, "config")}
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    patches = utils._PATCHES["dynamo"]
    utils._PATCHES["dynamo"] = [p for p in patches if p[2] is not exporter_dynamo._patch_chunked_vision_attention]
    ALL_ATTENTION_FUNCTIONS.register(_PACKED, _attention_within)
    for config in configs.values():
        config._attn_implementation_internal = _PACKED
    try:
        yield
    finally:
        utils._PATCHES["dynamo"] = patches
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def _attention_within(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each part of a packed sequence, [1, heads, T, D] -> [1, T, heads, D].

    Args:
        cu_seq_lens_q: where the parts begin, and the end of the last.
    """
    part = torch.bucketize(torch.arange(query.shape[2], device=query.device), cu_seq_lens_q, right=True)
    result = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=part[:, None] == part,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return result.transpose(1, 2), None


@contextmanager
def _fixing(module: Any, fixed: Mapping[str, Any]) -> Any:
    """The module called with these arguments, too; what it computes of them alone, or of the single whole numbers that
    it keeps as buffers (a codec's strides), is computed while it is traced.
    """
    forward = module.forward
    numbers = [
        (owner, name, owner._buffers.pop(name))
        for owner in module.modules()
        for name in owner._non_persistent_buffers_set
        if (buffer := owner._buffers.get(name)) is not None and buffer.ndim == 0 and not buffer.is_floating_point()
    ]
    for owner, name, buffer in numbers:
        owner.__dict__[name] = buffer

    def called(**inputs: Any) -> Any:
        with _Known():
            return forward(**inputs, **fixed)

    module.forward = called
    try:
        yield
    finally:
        del module.forward
        for owner, name, buffer in numbers:
            del owner.__dict__[name]
            owner._buffers[name] = buffer


class _Known(TorchFunctionMode):
    """Calls on tensors with values, none of them traced, are made outside of the trace: their results have values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        traced = any(is_traced(leaf) for leaf in leaves)
        if traced or not (tensors or func in (torch.arange, torch.linspace, torch.tensor, torch.as_tensor)):
            return func(*args, **(kwargs or {}))
        with unset_fake_temporarily(), disable_proxy_modes_tracing():
            return func(*args, **(kwargs or {}))


def _dynamic(inputs: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Every dim dynamic, save a box's four corners and the image sides of windowed models, whose padding makes the
    tracer's sizes explode.
    """
    windowed = any(
        any(hasattr(part, name) for name in ("window_size", "window_size_per_stage"))
        and (hasattr(part, "image_size") or hasattr(part, "patch_size"))
        for part in _parts(config)
    )
    fixed: dict[str, tuple[int, ...]] = {"bbox": (2,)}
    # DINOv2 with registers traces the scale of its example into the stretching of its positions.
    if windowed or config.model_type == "dinov2_with_registers":
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


def _parts(config: Any) -> list[Any]:
    """The config and the configs inside it."""
    inner = [value for value in vars(config).values() if isinstance(value, transformers.PretrainedConfig)]
    return [config, *(part for value in inner for part in _parts(value))]


def _from_fields(cls: Any, fields: Mapping[str, Any]) -> transformers.PretrainedConfig:
    """A config of config.json's fields, which spell infinity {"__float__": "Infinity"}."""
    return cls.from_dict(cls._decode_special_floats(dict(fields)))


def _defaults(cls: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """For each field what the class makes of it where a config.json leaves it out and has the others as they are.

    That is more than the class's plain defaults: layer types follow from the number of layers, and so on.
    """
    defaults = {}
    for name in fields:
        try:
            without = _from_fields(cls, {key: value for key, value in fields.items() if key != name})
        except Exception:
            continue  # a field that the class cannot do without has no default
        found = _plain(shaping(without.to_dict()))
        if name in found:
            defaults[name] = found[name]
    return defaults


def _plain(tree: Any) -> Any:
    """What JSON can hold; tuples become lists, whole-number keys text, infinity what config.json has for it."""
    if isinstance(tree, Mapping):
        return {str(key): _plain(value) for key, value in sorted(tree.items(), key=lambda item: str(item[0]))}
    if isinstance(tree, (list, tuple)):
        return [_plain(item) for item in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return transformers.PretrainedConfig._encode_special_floats(tree)
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    return str(tree)


@contextmanager
def _quiet() -> Any:
    """transformers and torch.export warn of things that capture does on purpose."""
    import warnings

    loggers = [logging.getLogger(name) for name in ("transformers", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
