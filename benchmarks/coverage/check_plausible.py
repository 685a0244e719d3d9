"""Whether what bounds a hostile config refuses a real one: no memory is taken for weights.

    python benchmarks/coverage/check_plausible.py [--types bert t5 …] [--bundled]

For each model type of transformers, with its default config and with the tiny one of the sweep, and for each config of
zoo/configs: the config is taken as a file's would be, its class built on the meta device within the bounds of a
checkpoint of exactly the model's size, and example inputs made within theirs. Refusals are printed; none is right.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import torch
import transformers
from shrink import tiny_config
from transformers.initialization import no_init_weights

import zoo
from zoo.capture.huggingface import config_from, model_class
from zoo.capture.huggingface.inputs import example_inputs
from zoo.capture.huggingface.limits import Bounded, Size, check_counts, refusing, without_hub
from zoo.errors import CaptureError, ConfigError
from zoo.tasks import TASKS

CONFIGS = Path(zoo.__file__).parent / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="*", default=[], help="model types alone")
    parser.add_argument("--bundled", action="store_true", help="the configs of zoo/configs alone: some seconds")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    refused = checked = unbuilt = 0
    start = time.monotonic()
    for name, config in configs(options.types, options.bundled):
        checked += 1
        found = refusals(config)
        refused += bool(found)
        unbuilt += found is None
        for what in found or ():
            print(f"{name}: {what}", flush=True)
    none = f"of {unbuilt} transformers builds no model by itself"
    print(f"{checked} configs in {time.monotonic() - start:.0f} s, {refused} refused, {none}")
    sys.exit(refused > 0)


def configs(types: list[str], bundled: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in () if bundled else types or sorted(transformers.CONFIG_MAPPING.keys()):
        for name, make in {"default": transformers.CONFIG_MAPPING[kind], "tiny": partial(tiny_config, kind)}.items():
            try:
                yield f"{kind} {name}", json.loads(make().to_json_string(use_diff=False))
            except Exception as error:
                print(f"{kind} {name}: transformers has none: {type(error).__name__}: {error}"[:160], flush=True)
    for path in sorted(CONFIGS.glob("*.json")):
        config = json.loads(path.read_text())
        if not types or config.get("model_type") in types:
            yield path.name, config


def refusals(fields: dict[str, Any]) -> list[str] | None:
    """What is refused of a config that transformers itself takes; None where it builds no model of it."""
    try:
        config = config_from(fields)
    except ConfigError as error:
        return [f"config: {line(error)}"]
    try:
        cls = class_of(config)
    except ConfigError:
        return None  # a part of others, of no class by itself
    try:
        model = on_meta(cls, config)
    except Exception:
        return None  # transformers cannot build it
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    size = Size(len(tensors), sum(math.prod(tensor.shape) for tensor in tensors))
    found = []
    try:
        check_counts(fields, size)
    except ConfigError as error:
        found.append(f"counts: {line(error)}")
    fields = config.to_dict()
    try:
        with refusing(fields, "cannot be built"), Bounded(fields, size):
            on_meta(cls, config)
    except ConfigError as error:
        found.append(f"build: {line(error)}")
    try:
        with refusing(fields, "no inputs", CaptureError), Bounded(fields, None, CaptureError):
            example_inputs(model, "float32", batch=2, length=6)
    except CaptureError as error:
        if "more than the checkpoint" in str(error):
            found.append(f"inputs: {line(error)}")
    return found


def class_of(config: Any) -> Any:
    """Of the config's own class, or of the first task that it serves."""
    for task in (None, *TASKS):
        try:
            return model_class(config, task)
        except ConfigError:
            continue
    raise ConfigError("no class", got=config.model_type)


def on_meta(cls: Any, config: Any) -> Any:
    with torch.device("meta"), no_init_weights(), without_hub():
        return cls._from_config(config, dtype=torch.float32)


def line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    main()
