"""A captured graph as its class's checkpoints have it: names, what is stored otherwise, and the facts of its origin."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import transformers

from zoo.capture.huggingface.classes import defaults, plain, task_of
from zoo.capture.huggingface.conversions import conversions
from zoo.graph.computed import is_computed, sinusoids
from zoo.graph.ir import Graph, Input, Ref, map_refs, param_ref
from zoo.graph.key import shaping
from zoo.graph.stored import Stored
from zoo.special_cases import special_case
from zoo.tasks import task_name

__all__ = ["named"]


def named(graph: Graph, module: Any, config: Any, task: str | None, dtype: str) -> Graph:
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
    fields = plain(shaping(config.to_dict()))
    meta = {
        **graph.meta,
        "transformers": transformers.__version__,
        "class": type(module).__name__,
        "model_type": config.model_type,
        "task": task_name(task) if task else task_of(type(module), config),
        "dtype": dtype,
        "prefix": module.base_model_prefix,
        "unexpected": sorted(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()),
        "renamed": renamed,
        "config": {
            "fields": fields,
            "defaults": defaults(type(config), fields),
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
    return [*prefixes, *map(list, special_case("misnamed on saving").get(type(module).__name__, ()))]


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
    misnamed = special_case("misnamed on saving").get(type(module).__name__, ())
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


def _published(name: str, misnamed: tuple[tuple[str, str], ...]) -> str:
    return next((new for pattern, to in misnamed if (new := re.sub(pattern, to, name)) != name), name)


def _with_default(item: Input) -> Input:
    """Masks default to "everything", token types to the first."""
    if item.name.endswith("attention_mask"):
        return replace(item, default=1)
    return replace(item, default=0) if item.name == "token_type_ids" else item
