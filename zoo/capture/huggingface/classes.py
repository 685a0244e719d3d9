"""transformers' configs and classes: which class serves a task, and a module of it without its weights.

Source: transformers 5.23; which class serves a task is its own auto-class tables' business.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import transformers

from zoo.capture.huggingface.limits import Bounded, Size, harmless, refusing, without_hub
from zoo.errors import ConfigError
from zoo.graph.key import shaping
from zoo.tasks import TASKS, task_name

__all__ = [
    "build",
    "config_from",
    "defaults",
    "from_fields",
    "model_class",
    "native_module",
    "parts_of",
    "plain",
    "quiet",
    "task_of",
]


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
        return from_fields(transformers.CONFIG_MAPPING[model_type], fields)


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
        with quiet(), no_init_weights(), bounds:
            module = cls._from_config(config, dtype=getattr(torch, dtype))
        if tied:
            module.tie_weights()
    return module.eval()


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


def task_of(cls: type, config: Any) -> str:
    """The task a class is for; one that serves several (BART fills masks, too) is named by what it generates."""
    served = []
    for task, autos in TASKS.items():
        for auto in autos:
            found = getattr(transformers, auto)._model_mapping.get(type(config), None)
            if found is cls or (isinstance(found, (tuple, list)) and cls in found):
                served.append(task)
    generating = [task for task in ("text2text-generation", "automatic-speech-recognition") if task in served]
    return (generating or served or ["feature-extraction"])[0]


def parts_of(config: Any) -> list[Any]:
    """The config and the configs inside it."""
    inner = [value for value in vars(config).values() if isinstance(value, transformers.PretrainedConfig)]
    return [config, *(part for value in inner for part in parts_of(value))]


def from_fields(cls: Any, fields: Mapping[str, Any]) -> transformers.PretrainedConfig:
    """A config of config.json's fields, which spell infinity {"__float__": "Infinity"}."""
    return cls.from_dict(cls._decode_special_floats(dict(fields)))


def defaults(cls: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """For each field what the class makes of it where a config.json leaves it out and has the others as they are.

    That is more than the class's plain defaults: layer types follow from the number of layers, and so on.
    """
    defaults = {}
    for name in fields:
        try:
            without = from_fields(cls, {key: value for key, value in fields.items() if key != name})
        except Exception:
            continue  # a field that the class cannot do without has no default
        found = plain(shaping(without.to_dict()))
        if name in found:
            defaults[name] = found[name]
    return defaults


def plain(tree: Any) -> Any:
    """What JSON can hold; tuples become lists, whole-number keys text, infinity what config.json has for it."""
    if isinstance(tree, Mapping):
        return {str(key): plain(value) for key, value in sorted(tree.items(), key=lambda item: str(item[0]))}
    if isinstance(tree, (list, tuple)):
        return [plain(item) for item in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return transformers.PretrainedConfig._encode_special_floats(tree)
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    return str(tree)


@contextmanager
def quiet() -> Any:
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
