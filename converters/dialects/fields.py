"""What a form can say of a model's config, and what its own readers compute with, whatever the config says.

Some forms have config.json read beside them, others hold a few of its fields in a file of their own, or none. A reader
of those takes the rest from its code: llama.cpp's Llama computes with SiLU. Each dialect says so in

    def understood(checkpoint, config) -> dict      the config of what the form's own reader computes, in Hugging
                                                    Face's fields; what it leaves out has the class's default

of a checkpoint in its names and layouts, one that is about to be written, or one that was, and the config.json that
belongs beside. A table of `Fields` is one way to it, reading the file's own metadata another. `unsaid` compares that
with the model that is written: a field that its reader has otherwise is refused by name, or noted where the two are
nearly one function, or where the form does say it and the reader ignores it (SAYS_CONFIG). A dialect without
`understood` has readers that honour config.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.errors import ConfigError
from zoo.graph.key import ABSENT, Contradiction, contradictions

__all__ = ["Fields", "nearly", "note", "refuse", "same_function", "unsaid", "with_field"]


@dataclass(frozen=True, slots=True)
class Fields:
    """What one reader makes of the config of one type of model.

    Args:
        fixed: field, dotted where it is of a nested config -> what the reader computes with, whatever the config says.
        said: the fields that the form can say; None for all that are not fixed.
    """

    fixed: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] | None = None

    def understood(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config as the reader has it."""
        always = ("model_type", "architectures")
        found = {key: value for key, value in config.items() if self.said is None or key in (*always, *self.said)}
        for name, value in self.fixed.items():
            found = with_field(found, name, value)
        return found


def unsaid(understood: Mapping[str, Any], record: Mapping[str, Any]) -> list[Contradiction]:
    """The fields that a form's reader has otherwise than the model that is written: `got` is the reader's value.

    Args:
        understood: the config as the reader has it.
        record: the shaping fields of the model, see `zoo.graph.key`.
    """
    found = contradictions(understood, record)
    return [one for one in found if not same_function(one.field, one.got, one.expected)]


def same_function(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a field mean one function under two names."""
    return _activation(name) and _family(one) is not None and _family(one) == _family(other)


def nearly(one: Contradiction) -> bool:
    """Whether the two values are one function but for less than float16's rounding of well-scaled numbers: both forms
    of GELU, which differ by 5e-4 at most, or two eps of norms that are 1e-6 at most.
    """
    if _activation(one.field):
        return {_family(one.got), _family(one.expected)} == {"gelu", "gelu_new"}
    sizes = [one.got, one.expected]
    return "eps" in one.field and all(isinstance(size, float) and 0 <= size <= _SMALL for size in sizes)


def note(form: str, one: Contradiction) -> str:
    """What to say of a field that the form's reader has nearly so, or that it ignores where it stands."""
    what = f"{one.field}: the model has {one.expected!r}, what reads {form} computes with {one.got!r}"
    return f"{what}, nearly the same" if nearly(one) else f"{what}, whatever config.json says"


def refuse(form: str, found: Iterable[Contradiction]) -> None:
    """Nothing if nothing was found.

    Raises:
        ConfigError: naming each field, what the form's reader computes with, and what the model has.
    """
    differing = list(found)
    if not differing:
        return
    names = ", ".join(one.field for one in differing)
    raise ConfigError(
        f"{form} cannot say {names}: what reads it would compute something else",
        where=f"config.json, {names}",
        expected="; ".join(f"{one.field} {one.got!r}" for one in differing),
        got="; ".join(f"{one.field} {one.expected!r}" for one in differing),
        do="convert to a form whose readers honour config.json, such as safetensors; "
        "or, if the weights were trained with what is expected, correct config.json first",
    )


def with_field(config: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The config with a field set, or left out if `value` is `ABSENT`; a dotted one in its nested config."""
    first, _, rest = name.partition(".")
    if not rest and value is ABSENT:
        return {key: kept for key, kept in config.items() if key != name}
    if not rest:
        return {**config, name: value}
    inner = config.get(first)
    return {**config, first: with_field(inner if isinstance(inner, Mapping) else {}, rest, value)}


_SMALL = 1e-6

# Names in transformers' ACT2FN of one function.
_FAMILIES = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(
        ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate", "gelu_tanh"), "gelu_new"
    ),
    **dict.fromkeys(("silu", "swish"), "silu"),
    **dict.fromkeys(("linear", "identity"), "linear"),
}
_GATE = "gated-"


def _activation(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.endswith(("_act", "activation", "activation_function", "act_fn", "afn")) or last in _PROJECTIONS


_PROJECTIONS = ("feed_forward_proj",)
"""T5's, which says whether there is a gate and which activation."""


def _family(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    if value.startswith(_GATE):
        inner = "gelu_new" if value == "gated-gelu" else str(_family(value.removeprefix(_GATE)))
        return _GATE + inner  # the class takes "gated-gelu" for the approximation
    return _FAMILIES.get(value, value)
