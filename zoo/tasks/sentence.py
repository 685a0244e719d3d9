"""What a folder of sentence-transformers says happens before and after the transformer: prompts, pooling, layers.

Dims: B texts, T tokens, D and E widths.
Source: sentence-transformers 6.2, base/model.py, base/modules and sentence_transformer/modules.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import ConfigError, SourceError, WeightsError, ZooError

__all__ = ["Sentences", "read_sentences"]


@dataclass
class Sentences:
    """How texts become vectors around a transformer.

    Args:
        modes: the ways of pooling, whose results are joined.
        include_prompt: whether the prompt's tokens are pooled, too.
        layers: what vectors [B, D] pass through after that.
        prompts: texts that can be put before each text, by name.
        default_prompt: the name of the one that is unless another is asked for.
        max_length: tokens that are left of a text; None leaves that to the tokenizer.
        lower: texts are lowercased, whatever the tokenizer does.
        modules: the folder says what its modules are.
    """

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    layers: list[Callable[[np.ndarray], np.ndarray]] = field(default_factory=list)
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None
    lower: bool = False
    modules: bool = False

    def prompt(self, prompt: str | None, name: str | None) -> str:
        """The text before each text: the one given, the one of that name, or the default.

        Raises:
            ConfigError: there is none of that name.
        """
        if prompt is not None:
            return prompt
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            raise ConfigError(
                "the model has no such prompt", expected=", ".join(self.prompts) or "none", got=name, do="pass prompt="
            )
        return self.prompts[name]

    def pool(self, hidden_TD: np.ndarray, mask_T: np.ndarray, prompt_length: int = 0) -> np.ndarray:
        """One text's vector: the results of all modes, one behind the other."""
        places_T = np.flatnonzero(mask_T)
        kept_T = places_T if self.include_prompt else places_T[prompt_length:]
        weights_T = (kept_T - (places_T[0] if places_T.size else 0) + 1)[:, None]
        if not kept_T.size:  # nothing is left of it
            zeros = np.zeros(hidden_TD.shape[1])
            return np.concatenate([hidden_TD[0] if mode == "cls" else zeros for mode in self.modes])
        found_TD = hidden_TD[kept_T]
        return np.concatenate([POOLINGS[mode](found_TD, weights_T) for mode in self.modes])


POOLINGS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cls": lambda hidden_TD, _: hidden_TD[0],
    "max": lambda hidden_TD, _: hidden_TD.max(0),
    "mean": lambda hidden_TD, _: hidden_TD.mean(0),
    "mean_sqrt_len_tokens": lambda hidden_TD, _: hidden_TD.sum(0) / math.sqrt(len(hidden_TD)),
    "weightedmean": lambda hidden_TD, weights_T: (hidden_TD * weights_T).sum(0) / weights_T.sum(),
    "lasttoken": lambda hidden_TD, _: hidden_TD[-1],
}
"""Of one text's real tokens, [T, D], and their places counted from 1 -> [D]; in the order in which they are joined."""

_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The spelling before version 6."""


def read_sentences(folder: Path | None, width: int | None = None) -> Sentences:
    """The settings of a folder; of one without any, the mean of all tokens.

    Args:
        width: of the transformer's hidden states, to compare with what the modules say.

    Raises:
        ConfigError: a file is damaged, or says something that is not done here: the field is named.
        WeightsError: a layer's weights are missing or misshaped.
    """
    found = Sentences()
    if folder is None:
        return found
    try:
        return _read(folder, width, found)
    except ZooError:
        raise
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        what = "sentence-transformers' settings are not of the types that they should be"
        raise ConfigError(what, where=folder, got=f"{type(error).__name__}: {error}") from error


def _read(folder: Path, width: int | None, found: Sentences) -> Sentences:
    said = _json(folder / "config_sentence_transformers.json")
    found.prompts = {name: text or "" for name, text in (said.get("prompts") or {}).items()}
    found.default_prompt = said.get("default_prompt_name")
    for name, types, value in (
        *((f"prompts, {name}", str, text) for name, text in found.prompts.items()),
        ("default_prompt_name", str | None, found.default_prompt),
    ):
        if not isinstance(value, types):
            raise _refused(folder / "config_sentence_transformers.json", name, value)
    if said.get("truncate_dim"):
        raise _refused(folder / "config_sentence_transformers.json", "truncate_dim", said["truncate_dim"])
    if found.default_prompt is not None and found.default_prompt not in found.prompts:
        raise ConfigError(
            "the default prompt is none of the prompts",
            where=folder / "config_sentence_transformers.json",
            expected=", ".join(found.prompts) or "no default",
            got=found.default_prompt,
        )
    _read_transformer(folder, found)
    modules = _modules(folder)
    if modules is None:
        legacy = folder / "1_Pooling" / "config.json"
        if legacy.is_file():
            _read_pooling(legacy, found, width)
        return found
    found.modules = True
    pooled = False
    for kind, place in modules:
        config = folder / place / "config.json"
        if kind == "Transformer" and not place:
            continue
        if kind == "Pooling" and not pooled:
            width, pooled = _read_pooling(config, found, width), True
            continue
        reader = _LAYERS.get(kind)
        if reader is None or not (pooled or kind == "Normalize"):
            raise ConfigError(
                "the vectors pass through a module that is not known here",
                where=f"{folder / 'modules.json'}, {place or 'the root'}",
                expected=f"a transformer, Pooling, then {', '.join(_LAYERS)}",
                got=kind,
            )
        layer, width = reader(config, width)
        if pooled and layer is not None:
            found.layers.append(layer)
    return found


def _modules(folder: Path) -> list[tuple[str, str]] | None:
    """The kind and folder of each module, in order; None where nothing says."""
    path = folder / "modules.json"
    if not path.is_file():
        return None
    try:
        found = sorted(json.loads(path.read_text("utf-8")), key=lambda module: module.get("idx", 0))
        listed = [(str(module["type"]).rpartition(".")[2], str(module.get("path", ""))) for module in found]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError("not a list of modules", where=path, got=error) from error
    for _, place in listed:
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise ConfigError("a module's path leads out of the folder", where=path, got=place)
    return listed


def _read_transformer(folder: Path, found: Sentences) -> None:
    """sentence_bert_config.json, which is called after other kinds of model, too."""
    path = next(iter(sorted(folder.glob("sentence_*_config.json"))), None)
    said = _json(path) if path is not None else {}
    text = (said.pop("modality_config", None) or {}).get("text")
    if text is not None and text != {"method": "forward", "method_output_name": "last_hidden_state"}:
        raise _refused(path, "modality_config", text)
    for name, usual in _TRANSFORMER.items():
        if said.get(name, usual) not in (usual, None, {}):
            raise _refused(path, name, said[name])
    if unknown := sorted(said.keys() - _TRANSFORMER.keys() - {"max_seq_length", "do_lower_case"}):
        raise _refused(path, unknown[0], said[unknown[0]])
    found.max_length, found.lower = said.get("max_seq_length"), bool(said.get("do_lower_case"))
    if found.max_length is not None and type(found.max_length) is not int:
        raise _refused(path, "max_seq_length", found.max_length)


_TRANSFORMER: Mapping[str, Any] = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "processing_kwargs": None,
    "processor_kwargs": None,
    "model_kwargs": None,
    "config_kwargs": None,
    "model_args": None,
    "tokenizer_args": None,
    "config_args": None,
    "query_length": None,
    "document_length": None,
    "query_expansion": None,
    "unpad_inputs": None,
}
"""What a transformer's settings may be; of those that change nothing here, anything."""


def _read_pooling(path: Path, found: Sentences, width: int | None) -> int | None:
    said = _module_json(path)
    own = said.pop("embedding_dimension", said.pop("word_embedding_dimension", None))
    said.pop("word_embedding_dimension", None)
    if width is not None and own not in (None, width):
        raise ConfigError("the vectors have another width", where=path, expected=own, got=width)
    found.include_prompt = bool(said.pop("include_prompt", True))
    flags = {mode: bool(said.pop(flag)) for flag, mode in _FLAGS.items() if flag in said}
    modes = said.pop("pooling_mode", None)
    if modes is None:
        modes = [mode for mode in POOLINGS if flags.get(mode)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise ConfigError(
            "this way of pooling is not known",
            where=path,
            expected=", ".join(POOLINGS),
            got=", ".join(map(str, unknown)),
        )
    if not modes:
        raise ConfigError("no way of pooling", where=path, expected=f"one of {', '.join(POOLINGS)}")
    for name, value in said.items():
        raise _refused(path, name, value)
    found.modes = tuple(modes)
    return None if width is None and own is None else len(modes) * (width or own)


Layer = tuple[Callable[[np.ndarray], np.ndarray] | None, int | None]


def _read_normalize(path: Path, width: int | None) -> Layer:
    said = _json(path)
    _of_sentences(path, said)
    for name, value in said.items():
        raise _refused(path, name, value)
    return lambda x_BD: x_BD / np.maximum(np.linalg.norm(x_BD, axis=1, keepdims=True), 1e-12), width


def _read_dropout(path: Path, width: int | None) -> Layer:
    return None, width


def _read_layer_norm(path: Path, width: int | None) -> Layer:
    said = _module_json(path)
    size = said.pop("dimension", width)
    for name, value in said.items():
        raise _refused(path, name, value)
    weights = _weights(path.parent, {"norm.weight": (size,), "norm.bias": (size,)})

    def apply(x_BD: np.ndarray) -> np.ndarray:
        centred_BD = x_BD - x_BD.mean(1, keepdims=True)
        scale_B1 = np.sqrt((centred_BD**2).mean(1, keepdims=True) + 1e-5)
        return centred_BD / scale_B1 * weights["norm.weight"] + weights["norm.bias"]

    return apply, size


def _read_dense(path: Path, width: int | None) -> Layer:
    said = _module_json(path)
    _of_sentences(path, said)
    try:
        rows, columns = int(said.pop("out_features")), int(said.pop("in_features"))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("a layer's sizes are missing", where=path, expected="in_features, out_features") from error
    if width is not None and columns != width:
        raise ConfigError("the layer takes vectors of another width", where=path, expected=columns, got=width)
    bias, residual = bool(said.pop("bias", True)), bool(said.pop("use_residual", False))
    name = said.pop("activation_function", "torch.nn.modules.activation.Tanh")
    activation = ACTIVATIONS.get(str(name).rpartition(".")[2]) if str(name).startswith("torch.") else None
    if activation is None:
        raise ConfigError(
            "the layer's activation is not known here",
            where=path,
            expected=f"torch.nn's {', '.join(ACTIVATIONS)}",
            got=name,
        )
    for key, value in said.items():
        raise _refused(path, key, value)
    projected = residual and rows != columns
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (rows, columns)}
    shapes |= {"linear.bias": (rows,)} if bias else {}
    shapes |= {"residual.weight": (rows, columns)} if projected else {}
    weights = _weights(path.parent, shapes)

    def apply(x_BD: np.ndarray) -> np.ndarray:
        y_BE = activation(x_BD @ weights["linear.weight"].T + weights.get("linear.bias", 0.0))
        if residual:
            y_BE = y_BE + (x_BD @ weights["residual.weight"].T if projected else x_BD)
        return y_BE

    return apply, rows


_LAYERS: dict[str, Callable[[Path, int | None], Layer]] = {
    "Normalize": _read_normalize,
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "Dropout": _read_dropout,
}
"""Modules behind the pooling, by the last part of their class's name."""


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "ReLU6": lambda x: np.clip(x, 0, 6),
    "GELU": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "Sigmoid": _sigmoid,
    "SiLU": lambda x: x * _sigmoid(x),
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "LeakyReLU": lambda x: np.where(x > 0, x, 0.01 * x),
    "Softplus": _softplus,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Hardtanh": lambda x: np.clip(x, -1, 1),
    "Hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "LogSigmoid": lambda x: -_softplus(-x),
    "Tanhshrink": lambda x: x - np.tanh(x),
}
"""torch.nn's activations as they are without arguments."""


def _weights(folder: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, np.ndarray]:
    """A module's tensors in float64: all of these, no others."""
    from converters import open_checkpoint

    try:
        with open_checkpoint(folder) as checkpoint:
            got = {name: info.shape for name, info in checkpoint.infos.items()}
            wrong = [name for name in {**shapes, **got} if got.get(name) != shapes.get(name)]
            if wrong:
                raise WeightsError(
                    "a module's weights are not its own",
                    where=folder,
                    expected=", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()),
                    got=", ".join(f"{name} {list(shape)}" for name, shape in got.items()),
                )
            return {name: checkpoint.read(name).astype(np.float64) for name in shapes}
    except SourceError as error:
        raise WeightsError("a module's weights are missing", where=folder, expected=", ".join(shapes)) from error


def _of_sentences(path: Path, said: dict[str, Any]) -> None:
    for name in ("module_input_name", "module_output_name"):
        if (value := said.pop(name, None)) not in (None, "sentence_embedding"):
            raise _refused(path, name, value)


def _refused(path: Path | None, name: str, value: Any) -> ConfigError:
    return ConfigError("a setting of sentence-transformers is not known here", where=f"{path}, {name}", got=value)


def _module_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(
            "a module has no config", where=path, do="take the whole folder: modules.json names all that belongs to it"
        )
    return _json(path)


def _json(path: Path) -> dict[str, Any]:
    from zoo.files import read_json

    return read_json(path) if path.is_file() else {}
