"""Fitting a checkpoint's tensors to a graph's parameters, by name; everything that does not fit is reported at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from converters.marks import (
    ADAPTER_ADVICE,
    NOT_APPLIED,
    NOT_READ,
    QUANTISED_ADVICE,
    adapter_tensors,
    holds_layer,
    is_float8,
    is_integer,
    is_quantisers,
    lies_beside,
    quantised_tensors,
    told_by,
    why_beside,
)
from zoo.arrays import numpy_dtype
from zoo.errors import WeightsError
from zoo.graph.computed import COMPUTED, is_computed, sinusoids
from zoo.graph.facts import Facts
from zoo.graph.ir import Graph, param_ref
from zoo.parts import known_parts

__all__ = [
    "NOT_USED",
    "OTHER_TASK",
    "Fit",
    "as_dtype",
    "as_saved",
    "check_twins",
    "expected_shapes",
    "fit",
    "gathered",
    "lacking",
    "main_needs",
    "needed",
    "other_names",
    "prune",
    "scattered",
    "untie",
]

# Spellings of old checkpoints -> those of the module today. Both directions are tried.
_RENAMED = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
    # one bias under two names, of which files hold one
    ("predictions.bias", "predictions.decoder.bias"),
    ("lm_head.bias", "lm_head.decoder.bias"),
)

NOT_USED = "the class does not use it"
OTHER_TASK = "belongs to a part that this task does not have"
"""Why a tensor is not used that nothing is lost with; any other reason is worth a note."""

NO_DTYPES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Fit:
    """How a checkpoint serves a graph.

    Args:
        names: canonical parameter -> the checkpoint's tensor.
        missing: canonical parameters that no tensor serves.
        made: canonical parameters that no tensor serves but that the model itself says how to compute.
        unused: tensor -> why it is not needed.
        twins: tensor -> another that serves its parameter; `check_twins` compares them.
        plain: tensors of float8 that serve parameters of more bits, and that no other tensor is beside.
    """

    names: Mapping[str, str]
    missing: tuple[str, ...]
    made: Mapping[str, np.ndarray]
    unused: Mapping[str, str]
    twins: Mapping[str, str] = field(default_factory=dict)
    plain: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """What the user should know of how tensors are taken."""
        if not self.plain:
            return []
        shown = ", ".join(self.plain[:3]) + (f" and {len(self.plain) - 3} more" if len(self.plain) > 3 else "")
        return [f"float8 without a scale beside it is taken as a plain cast of the weights: {shown}"]


def fit(
    graph: Graph,
    shapes: Mapping[str, tuple[int, ...]],
    where: object,
    *,
    strict: bool = True,
    dtypes: Mapping[str, str] = NO_DTYPES,
) -> Fit:
    """Match tensor names and shapes with the graph's parameters.

    Args:
        graph: its meta may hold "prefix" (transformers' base_model_prefix) and "unexpected" (patterns of tensor names
            that the class knows and does not use), "legacy" (pattern, replacement: names that it had before).
        shapes: tensor name -> shape, all of the checkpoint.
        where: the checkpoint, for errors.
        strict: False takes unknown tensors as unused, but never those of quantised layers.
        dtypes: tensor name -> dtype; one of whole numbers is no weight of a parameter that has others.

    Raises:
        WeightsError: a tensor has another shape, holds whole numbers where the model has others, or is unknown in a
            part of the model that the graph has. All such tensors are named. Missing ones are returned, not raised:
            `prune` decides whether they matter.
    """
    prefix = graph.meta.get("prefix") or ""
    index = _index(graph, shapes)
    names: dict[str, str] = {}
    missing, misshaped, packed = [], [], []
    made: dict[str, np.ndarray] = {}
    twins: dict[str, str] = {}
    for param in graph.params.values():
        candidates = [c for own in (param.name, *param.aliases) for c in _candidates(own, prefix)]
        found = next((index[c] for c in candidates if c in index), None)
        twins.update((index[c], found) for c in candidates if found and index.get(c, found) != found)
        if found is None and param.name in graph.meta.get("sinusoids", ()):
            made[param.name] = sinusoids(param.shape)
        elif found is None:
            missing.append(param.name)
        elif tuple(shapes[found]) != param.shape:
            misshaped.append(f"{found}: expected {list(param.shape)}, got {list(shapes[found])}")
        else:
            names[param.name] = found
        if found and not _of_a_kind(dtypes.get(found, param.dtype), param.dtype):
            packed.append(f"{found}: expected {param.dtype}, got {dtypes[found]}")
    served = set(names.values()) | {index[c] for c in _all_names(graph, prefix) if c in index}
    left = [name for name in shapes if name not in served]
    unused, unexpected, apart = _leftovers(graph, left, prefix, dtypes)
    plain = [own for name, own in names.items() if _is_cast(dtypes.get(own, ""), graph.params[name].dtype)]
    copies = expected_shapes(graph) if plain else {}
    told = [name for name in told_by(left, plain) if not _is_copy(name, shapes, copies)]
    unused = {name: why for name, why in unused.items() if name not in told}
    unexpected += [name for name in told if name not in unexpected]
    adapters, quantised = adapter_tensors(unexpected), [*told, *quantised_tensors(unexpected, dtypes), *apart]
    if strict:
        unexpected += [name for name in apart if name not in told]
    else:
        unused |= {
            name: "it is an adapter's, which is not applied" if name in adapters else "the model does not know it"
            for name in (*unexpected, *apart)
        }
        quantised = unexpected = [name for name in unexpected if name in quantised]
    if misshaped or unexpected or packed:
        what, do = _NO_FIT
        if packed or quantised:
            what, do = NOT_READ, QUANTISED_ADVICE
        elif adapters and not misshaped:
            what, do = NOT_APPLIED, ADAPTER_ADVICE
        _refuse(where, misshaped, unexpected, missing, what, do, packed=packed, held=shapes)
    return Fit(names, tuple(missing), made, unused, twins, tuple(plain))


def _of_a_kind(stored: str, wanted: str) -> bool:
    """Whether numbers of one dtype can serve as another: no whole ones for others, no complex ones for real."""
    if stored.startswith("complex") and not wanted.startswith("complex"):
        return False
    return is_integer(wanted) or not is_integer(stored)


def _is_cast(stored: str, wanted: str) -> bool:
    """Whether numbers of eight bits are taken as they are for others, as if nothing had been scaled."""
    return is_float8(stored) and not is_float8(wanted)


def _is_copy(name: str, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a tensor is a parameter's twin elsewhere in the file (a momentum encoder's), and says nothing of it."""
    return any(expected.get(name[dot.end() :]) == tuple(shapes[name]) for dot in re.finditer(r"[./]", name))


def check_twins(checkpoint: Any, fitted: Fit) -> None:
    """Tensors that serve one parameter must be the same: only one of them is read.

    Raises:
        WeightsError: two differ; all such pairs are named.
    """
    apart = [f"{one} and {other}" for one, other in fitted.twins.items() if not _equal(checkpoint, one, other)]
    if apart:
        raise WeightsError(
            "the checkpoint holds parameters of the model twice, and the two differ",
            where=checkpoint.path,
            got="; ".join(apart),
            do="remove from the file the one of each pair that is not meant",
        )


def lacking(graph: Graph, names: Collection[str]) -> set[str]:
    """The parameters that tensors of these names do not serve, and that the model does not compute."""
    params = graph.params
    if all(name in names for name in params):
        return set()
    prefix = graph.meta.get("prefix") or ""
    index = _index(graph, names)
    made = {
        name
        for group in graph.stored
        if any(c in index for tensor in group.tensors for c in _candidates(tensor, prefix))
        for name in group.params
    }
    made.update(graph.meta.get("sinusoids", ()))
    return {
        param.name
        for param in params.values()
        if param.name not in made
        and not is_computed(param.name)
        and not any(c in index for own in (param.name, *param.aliases) for c in _candidates(own, prefix))
    }


def main_needs(graph: Graph) -> set[str]:
    """The parameters that the first output is computed from; all of them if only names and shapes are known."""
    if not graph.nodes:
        return set(graph.params)
    found = Facts(graph).sources[next(iter(graph.outputs.values())).name]
    return {name for name in graph.params if param_ref(name) in found}


def gathered(graph: Graph, checkpoint: Any, *, as_published: bool = True) -> Any:
    """The checkpoint with those parameters that it divides among tensors otherwise put together, where it does.

    Args:
        checkpoint: under canonical names; closed with what is returned.
        as_published: whether a tensor that has a parameter's name may be in the layout of the class's checkpoints, as
            it is in files of torch; what a dialect gives that name has the parameter's own.

    Raises:
        WeightsError: of tensors that make up parameters some are missing, or have another shape; all are named.
    """
    if not graph.stored:
        return checkpoint
    from converters.view import Piece, Pieces

    prefix = graph.meta.get("prefix") or ""
    index = _index(graph, checkpoint.infos)
    recipes: dict[str, Pieces] = {}
    used: set[str] = set()
    missing, misshaped = [], []
    for group in graph.stored:
        found = [next((index[c] for c in _candidates(name, prefix) if c in index), None) for name in group.tensors]
        own = {index[c] for name in group.params for c in _candidates(name, prefix) if c in index}
        if own - (set(found) if as_published else set()) or not any(found):
            continue  # it has them as they are, or not at all
        shapes = list(group.tensors.values())
        for name, tensor, shape in zip(group.tensors, found, shapes, strict=True):
            if tensor is None:
                missing.append(name)
            elif checkpoint.infos[tensor].shape != shape:
                misshaped.append(f"{tensor}: expected {list(shape)}, got {list(checkpoint.infos[tensor].shape)}")
        used.update(tensor for tensor in found if tensor is not None)
        parts: dict[str, list[Piece]] = {name: [] for name in group.params}
        for box in group.boxes:
            piece = Piece(found[box.tensor] or "", shapes[box.tensor], box.sizes, box.in_tensor, box.in_param)
            parts[group.params[box.param]].append(piece)
        recipes |= {name: Pieces(graph.params[name].shape, tuple(pieces)) for name, pieces in parts.items()}
    if missing or misshaped:
        _refuse(checkpoint.path, misshaped, [], missing, held=checkpoint.infos)
    return _rearranged(checkpoint, recipes, used)


def scattered(graph: Graph, checkpoint: Any) -> Any:
    """The way back: the tensors of the class's checkpoints, out of a checkpoint that has the graph's parameters."""
    from converters.view import Piece, Pieces

    recipes: dict[str, Pieces] = {}
    used: set[str] = set()
    for group in graph.stored:
        if not all(name in checkpoint.infos for name in group.params):
            continue
        used.update(group.params)
        names = list(group.tensors)
        parts: dict[str, list[Piece]] = {name: [] for name in names}
        for box in group.boxes:
            own = group.params[box.param]
            piece = Piece(own, graph.params[own].shape, box.sizes, box.in_param, box.in_tensor)
            parts[names[box.tensor]].append(piece)
        recipes |= {name: Pieces(shape, tuple(parts[name])) for name, shape in group.tensors.items()}
    return _rearranged(checkpoint, recipes, used)


def as_saved(graph: Graph, checkpoint: Any) -> Any:
    """Tied weights under the name that the class's checkpoints have for them: the one in the base model.

    A class whose head comes before its base model (XLM-RoBERTa's) has the head's name first.
    """
    from converters.view import Recipe, View

    prefix = f"{graph.meta.get('prefix')}."
    names = {}
    for name in checkpoint.infos:
        others = graph.params[name].aliases if name in graph.params and not name.startswith(prefix) else ()
        inside = (other for other in others if other.startswith(prefix) and other not in checkpoint.infos)
        names[next(inside, name)] = name
    if all(name == own for name, own in names.items()):
        return checkpoint
    return View(checkpoint, {name: Recipe(own) for name, own in names.items()})


def _rearranged(checkpoint: Any, recipes: Mapping[str, Any], used: set[str]) -> Any:
    """The checkpoint with what recipes make, and all that they did not use."""
    from converters.view import Recipe, View

    if not recipes:
        return checkpoint
    return View(checkpoint, {**{name: Recipe(name) for name in checkpoint.infos if name not in used}, **recipes})


def expected_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter, under every name by which a checkpoint may hold it, and of tensors made of them."""
    prefix = graph.meta.get("prefix") or ""
    named = [(own, param.shape) for param in graph.params.values() for own in (param.name, *param.aliases)]
    named += [item for group in graph.stored for item in group.tensors.items()]
    return {
        spelling: shape
        for own, shape in named
        for candidate in _candidates(own, prefix)
        for spelling in (candidate, *_spellings(candidate))
    }


def untie(graph: Graph, checkpoint: Any) -> Graph:
    """The graph with those aliases made parameters of their own for which the checkpoint holds another array.

    A class may tie its weights by default while a checkpoint was trained with them apart (the output layer of T5 1.1).
    """
    from dataclasses import replace

    index = _index(graph, checkpoint.infos)
    prefix = graph.meta.get("prefix") or ""
    params = {}
    for param in graph.params.values():
        stored = {
            own: next((index[c] for c in _candidates(own, prefix) if c in index), None)
            for own in (param.name, *param.aliases)
        }
        first = stored[param.name] or next((name for name in stored.values() if name), None)
        apart = [own for own, name in stored.items() if name and first and not _equal(checkpoint, first, name)]
        tied = tuple(alias for alias in param.aliases if alias not in apart)
        params[param.name] = replace(param, aliases=tied)
        params.update((own, replace(param, name=own, aliases=())) for own in apart)
    return replace(graph, params=params)


def needed(graph: Graph) -> set[str]:
    """The parameters that some output is computed from."""
    needs = Facts(graph).sources
    found = set().union(*(needs[ref.name] for ref in graph.outputs.values()))
    return {name for name in graph.params if param_ref(name) in found}


def other_names(graph: Graph, name: str) -> Iterator[str]:
    """Further names of a parameter: those of a tied weight, that of the module's own class, older ones."""
    param = graph.params.get(name)
    yield from param.aliases if param is not None else ()
    if name in graph.meta.get("renamed", {}):
        yield graph.meta["renamed"][name]
    for pattern, replacement in graph.meta.get("legacy", ()):
        outer = re.fullmatch(r"\^(\w+)\\\.\(\.\+\)", pattern)  # a module that was around all others
        if outer and replacement == r"\1":
            yield f"{outer[1]}.{name}"
    yield from _spellings(name)


def prune(graph: Graph, fitted: Fit, where: object) -> tuple[Graph, dict[str, str]]:
    """The graph without the outputs that need missing parameters, and why each is gone.

    A checkpoint saved for one task often lacks what another output needs (a pooler, say); the outputs that need
    nothing missing are still right.

    Raises:
        WeightsError: the main output needs a missing parameter; all missing ones are named.
    """
    from dataclasses import replace

    if not fitted.missing:
        return graph, {}
    needs = Facts(graph).sources
    lacking = {param_ref(name) for name in fitted.missing}
    dropped = {
        name: "needs " + ", ".join(sorted(v.removeprefix("p:") for v in needs[ref.name] & lacking))
        for name, ref in graph.outputs.items()
        if needs[ref.name] & lacking
    }
    main = next(iter(graph.outputs))
    if main in dropped:
        _refuse(where, [], [], list(fitted.missing), held=fitted.unused, found=fitted.names.values())
    outputs = {name: ref for name, ref in graph.outputs.items() if name not in dropped}
    kept = Facts(graph).needed(ref.name for ref in outputs.values())
    graph = graph.keeping(graph.params.keys() - set(fitted.missing))
    return replace(graph, nodes=kept, outputs=outputs), dropped


def _leftovers(
    graph: Graph, names: list[str], prefix: str, dtypes: Mapping[str, str]
) -> tuple[dict[str, str], list[str], list[str]]:
    """Tensors that nothing asked for: those with a good reason; the rest; and those of quantised layers elsewhere,
    which may be the model's or another part's.
    """
    patterns = [re.compile(p) for p in graph.meta.get("unexpected", ())]
    modules, layers = _modules(graph, prefix)
    tops = {module.partition(".")[0] for module in modules}
    inner = modules - {"", prefix}  # where other tasks' heads are not
    narrow = {name for name in names if is_integer(dtypes.get(name, "")) or is_float8(dtypes.get(name, ""))}
    unused: dict[str, str] = {}
    unexpected: list[str] = []
    apart: list[str] = []
    for name in names:
        part = _first_unknown(name, modules)
        inside = any(name.startswith(f"{layer}.") for layer in _leading(name, layers))
        if is_computed(name):
            unused[name] = COMPUTED
        elif any(pattern.search(name) for pattern in patterns) and not (inside and adapter_tensors([name])):
            unused[name] = NOT_USED
        elif (why := why_beside(name, tops)) is not None:
            unused[name] = why
        elif inside or part is None or any(piece.isdigit() for piece in part) or adapter_tensors([name]):
            unexpected.append(name)
        elif is_quantisers(name, layers) and not lies_beside(name, narrow - {name}):  # not of weights of its own
            (unexpected if holds_layer(name, layers) else apart).append(name)
        elif ".".join(part[:-1]) in inner:
            unused[name] = f"the model has no module {'.'.join(part)}; if it was trained with one, that is lost"
        else:
            unused[name] = _elsewhere(graph, ".".join(part))
    return unused, unexpected, apart


def _elsewhere(graph: Graph, part: str) -> str:
    """Why a part of the base or beside it is not used: another class of the model type has it, or none has."""
    model_type = graph.meta.get("model_type")
    known = known_parts(model_type, graph.meta.get("class", "")) if model_type else None
    if known is None:
        return f"the model has no module {part}; a class for another task may have it"
    if part.rpartition(".")[2] in known:
        return OTHER_TASK
    return f"no class of {model_type} has a module {part}; if the model was trained with one, that is lost"


def _modules(graph: Graph, prefix: str) -> tuple[set[str], set[str]]:
    """The paths of modules, and of those that are one layer: whatever lies inside changes what they compute."""
    modules = {""}
    owners = set()
    for name in _all_names(graph, prefix):
        parts = name.split(".")
        modules.update(".".join(parts[:end]) for end in range(1, len(parts)))
        owners.add(".".join(parts[:-1]))
    parents = {module.rpartition(".")[0] for module in modules if module}
    return modules, {*(owners - parents - {""}), *_all_names(graph, prefix)}


def _leading(name: str, layers: set[str]) -> list[str]:
    """The layers whose path a name begins with."""
    parts = name.split(".")
    return [path for end in range(1, len(parts)) if (path := ".".join(parts[:end])) in layers]


def _first_unknown(name: str, modules: set[str]) -> list[str] | None:
    """The path to the first module on the way to a tensor that the graph lacks (a pooler, another head); None if it has
    all of them.

    With a number in it, inside a layer or past the last, it says that the config is wrong.
    """
    path = name.split(".")[:-1]
    known = 0
    while known < len(path) and ".".join(path[: known + 1]) in modules:
        known += 1
    return path[: known + 1] if known < len(path) else None


def _all_names(graph: Graph, prefix: str) -> Iterator[str]:
    for param in graph.params.values():
        for own in (param.name, *param.aliases):
            yield from _candidates(own, prefix)


def _candidates(name: str, prefix: str) -> Iterator[str]:
    """How a checkpoint of the base model or of any head may spell a parameter."""
    yield name
    if prefix:
        yield name.removeprefix(prefix + ".") if name.startswith(prefix + ".") else f"{prefix}.{name}"


def _index(graph: Graph, names: Iterable[str]) -> dict[str, str]:
    """By which names the graph may ask for a checkpoint's tensors -> those tensors; own names win."""
    canonical = {own: name for name, own in graph.meta.get("renamed", {}).items()}
    prefix = f"{graph.meta.get('prefix') or ''}."
    index: dict[str, str] = {}
    for name in names:
        for pattern, replacement in graph.meta.get("legacy", ()):
            now = re.sub(pattern, replacement, name.removeprefix(prefix))
            if now != name.removeprefix(prefix):
                index[canonical.get(now, now)] = name
        index.update(dict.fromkeys(_spellings(name), name))
        if name in canonical and name not in graph.params:  # what the module itself calls it
            index[canonical[name]] = name
    index.update((name, name) for name in names)
    return index


def _spellings(name: str) -> Iterator[str]:
    for old, new in _RENAMED:
        if name.endswith(old):
            yield name.removesuffix(old) + new
        if name.endswith(new):
            yield name.removesuffix(new) + old


_NO_FIT = (
    "the checkpoint's tensors do not fit the model",
    "check that the weights belong to this config and task; "
    "a checkpoint without the head of a task cannot serve that task",
)


def _refuse(
    where: object,
    misshaped: list[str],
    unexpected: list[str],
    missing: list[str],
    what: str = _NO_FIT[0],
    do: str = _NO_FIT[1],
    *,
    packed: Collection[str] = (),
    held: Collection[str] = (),
    found: Collection[str] = (),
) -> NoReturn:
    """Args: held: what the file has; found: of it what served."""
    kinds = [("other numbers", packed), ("misshaped", misshaped), ("unexpected", unexpected), ("missing", missing)]
    lines = [f"{kind} ({len(names)}): " + "; ".join(names) for kind, names in kinds if names]
    others = [name for name in held if name not in found]
    if missing and others:
        near = [f"{name} ~ {other}" for name in missing[:_NEAR] if (other := _nearest(name, others))]
        lines += ["nearest in the file: " + "; ".join(near)] if near else []
        shown = "; ".join(others[:_NEAR]) + (f"; and {len(others) - _NEAR} more" if len(others) > _NEAR else "")
        lines.append(f"the file has ({len(others)}): {shown}")
    raise WeightsError(what, where=where, got="\n    " + "\n    ".join(lines), do=do)


_NEAR = 5
"""How many names an error shows beside those that lack."""


def _nearest(name: str, others: Sequence[str]) -> str | None:
    """The name that is most alike, by its parts from the end: prefixes are what differs most."""
    own = re.split(r"[./]", name)

    def likeness(other: str) -> float:
        theirs = re.split(r"[./]", other)
        same = sum(1 for a, b in zip(reversed(own), reversed(theirs), strict=False) if a == b)
        return same + len(set(own) & set(theirs)) / (len(own) + len(theirs))

    best = max(others, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.25 else None


def _equal(checkpoint: Any, a: str, b: str) -> bool:
    """Whether two tensors of a checkpoint are the same; those of different shape are left to `fit` to report."""
    from converters.checkpoint import in_step

    if a == b or checkpoint.aliases.get(b, b) == checkpoint.aliases.get(a, a):
        return True
    if checkpoint.infos[a].shape != checkpoint.infos[b].shape:
        return True
    if checkpoint.infos[a].dtype != checkpoint.infos[b].dtype:
        return bool(np.array_equal(checkpoint.read(a), checkpoint.read(b)))
    return all(np.array_equal(x, y) for x, y in in_step(checkpoint.blocks(a), checkpoint.blocks(b)))


def as_dtype(array: np.ndarray, dtype: str) -> Any:
    """The array itself if it has the dtype, else a converted copy."""
    target = numpy_dtype(dtype)
    return array if array.dtype == target else array.astype(target)
