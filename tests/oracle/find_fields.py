"""Which fields of a config the TensorFlow and Flax classes of transformers 4.57 compute otherwise than torch's.

    TF_USE_LEGACY_KERAS=1 <oracle python> tests/oracle/find_fields.py [--only type,type]

For each type of model of make_checkpoints.py and each field of its config, of nested ones as well, torch's class
computes with another value of the field and the same weights. Where that changes its outputs the other framework's
class gets the same value and weights, and its outputs must change as torch's do. Of those that do not
benchmarks/results/fields_of_transformers4.json says "ignored" if the outputs are those of the value before, "differs"
if they are neither. The tables in converters/dialects/transformers4.py are made from it. A type has a process of its
own; types that were done stay.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_checkpoints as oracle
import numpy as np

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "fields_of_transformers4.json"
HEADS = ("base", "causal-lm", "seq2seq-lm", "masked-lm", "image-classification")
EFFECT = 100 * oracle.TOLERANCE  # less than that says nothing

_IGNORED = re.compile(
    r"drop|init|use_cache|return_dict|output_(h|a)|gradient|problem_type|label|torch|(eos|bos|sep)_token|_token_index|"
    r"chunk_size_feed|pruned|is_encoder|decoder_start|tie_encoder|name_or_path|version|architectures|model_type|attn_impl"
    r"|mask_(time|feature)|spec_augment|ctc_|classifier_proj|summary|loss|dtype|forced|suppress|begin_|_length$|num_beam"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="model types or variants, joined by commas")
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [*oracle.CONFIGS, *oracle.VARIANTS]
    if options.worker:
        options.worker.write_text(json.dumps(dict(of_type(names[0], options.heads.split(",")))))
        return
    results = json.loads(RESULT.read_text())["result"] if RESULT.is_file() else {}
    for name in names:
        if not options.only and any(key.startswith(f"{name}/") for key in results):
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "found.json"
            command = [sys.executable, __file__, f"--only={name}", f"--heads={options.heads}", f"--worker={out}"]
            start = time.monotonic()
            try:
                code: Any = subprocess.run(command, check=False, timeout=900).returncode
            except subprocess.TimeoutExpired:
                code = "timeout"
            if out.is_file():
                results.update(json.loads(out.read_text()))
        print(f"== {name}: {code} after {time.monotonic() - start:.0f} s", flush=True)
        environment = {"command": "find_fields.py", "transformers": "4.57.6"}
        types = {variant: kind for variant, (kind, _) in oracle.VARIANTS.items()}
        document = {"environment": environment, "types": types, "result": dict(sorted(results.items()))}
        RESULT.write_text(json.dumps(document, indent=1) + "\n")


def of_type(name: str, heads: list[str]) -> Iterator[tuple[str, Any]]:
    """("type/head/framework", field -> what became of it) for each class that there is."""
    oracle._prepare()
    for case in oracle.cases(name):
        if case.head not in heads:
            continue
        try:
            model = oracle.build(case)
            inputs = oracle.make_inputs(case, model.config)
            truth = torch_outputs(model, inputs)
        except Exception as error:
            yield f"{name}/{case.head}/torch", {"": f"cannot be built: {error}"[:200]}
            continue
        changed = {}
        for field, value in variations(model.config):
            outputs = varied(model, field, value, inputs)
            if outputs is not None and apart(outputs, truth, inputs) > EFFECT:
                changed[field] = (value, outputs)
        with tempfile.TemporaryDirectory() as folder:
            save(model, Path(folder))
            for framework, loader in (("tf", TensorFlow), ("flax", Flax)):
                if framework in case.frameworks:
                    yield f"{name}/{case.head}/{framework}", compared(loader, case, folder, inputs, truth, changed)


def compared(loader: Any, case: Any, folder: str, inputs: Any, truth: Any, changed: dict[str, Any]) -> dict[str, str]:
    found = {}
    try:
        theirs = loader(case.frameworks, folder, inputs)
        base = theirs.outputs(theirs.config)
        off = apart(base, truth, inputs)
        found[""] = f"off by {off:.1g} before any change" if off > oracle.TOLERANCE else "same"
    except Exception as error:
        return {"": f"cannot be loaded: {error}"[:200]}
    for field, (value, expected) in changed.items():
        config = copy.deepcopy(theirs.config)
        set_field(config, field, value)
        try:
            outputs = theirs.outputs(config)
        except Exception as error:
            found[field] = f"{value!r}: fails: {type(error).__name__}: {error}"[:160]
            continue
        off, moved = apart(outputs, expected, inputs), apart(outputs, base, inputs)
        if off <= 10 * oracle.TOLERANCE:
            found[field] = "same"
        else:
            what = "ignored" if moved <= oracle.TOLERANCE else "differs"
            found[field] = f"{value!r} for {get_field(theirs.config, field)!r}: {what}, off by {off:.2g}"
    return found


def variations(config: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Each field that may shape the network without shaping a tensor, and another value for it."""
    fields = config.to_dict()
    for name, value in fields.items():
        inner = getattr(config, name, None)
        if hasattr(inner, "to_dict"):
            yield from variations(inner, f"{at}{name}.")
            continue
        if _IGNORED.search(name):
            continue
        if name == "rope_scaling":
            yield f"{at}{name}", {"rope_type": "linear", "factor": 4.0}
        elif name in ("head_dim", "sliding_window"):
            yield f"{at}{name}", 4 if value != 4 else 3
        elif re.search(r"(_act|activation|activation_function|act_fn|afn)$", name) and isinstance(value, str):
            yield f"{at}{name}", "relu" if value not in ("relu", "relu6") else "gelu"
        elif name == "feed_forward_proj":
            yield f"{at}{name}", value.replace("relu", "silu") if "relu" in value else value.replace("gelu", "relu")
        elif isinstance(value, bool):
            yield f"{at}{name}", not value
        elif isinstance(value, float):
            yield f"{at}{name}", 0.3 if "eps" in name else 100.0 if "theta" in name else value * 1.7 + 0.1
        elif isinstance(value, int):
            yield f"{at}{name}", value // 2 if "head" in name and value > 1 else value + 1


def set_field(config: Any, field: str, value: Any) -> None:
    *path, last = field.split(".")
    for name in path:
        config = getattr(config, name)
    setattr(config, last, value)
    if last == "feed_forward_proj":  # what the class derives from it
        config.is_gated_act, config.dense_act_fn = value.startswith("gated"), value.rpartition("-")[2]


def get_field(config: Any, field: str) -> Any:
    for name in field.split("."):
        config = getattr(config, name)
    return config


def torch_outputs(model: Any, inputs: Any) -> dict[str, np.ndarray]:
    import torch

    taken, _ = oracle._accepted(model.forward, inputs)
    cacheless, _ = oracle._accepted(model.forward, {"use_cache": False})
    with torch.no_grad():
        return oracle.flatten(model(**{k: torch.from_numpy(v) for k, v in taken.items()}, **cacheless))


def varied(model: Any, field: str, value: Any, inputs: Any) -> dict[str, np.ndarray] | None:
    """Torch's outputs with the same weights and another value; None where it has other weights, or fails."""
    config = copy.deepcopy(model.config)
    try:
        set_field(config, field, value)
        config._attn_implementation = "eager"
        other = type(model)(config).eval()
        other.load_state_dict(model.state_dict())
        return torch_outputs(other, inputs)
    except Exception:
        return None


def save(model: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    model.save_pretrained(folder, safe_serialization=True)
    full = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
    save_file(full, folder / "model.safetensors", metadata={"format": "pt"})


class TensorFlow:
    def __init__(self, classes: Any, folder: str, inputs: Any) -> None:
        import tensorflow as tf
        import transformers

        tf.keras.backend.clear_session()
        self._cls = getattr(transformers, classes["tf"])
        self._model = self._cls.from_pretrained(folder, from_pt=True)
        taken, _ = oracle._accepted(self._model.call, inputs)
        self._inputs = {k: tf.constant(v.astype(np.int32) if v.dtype == np.int64 else v) for k, v in taken.items()}
        self.config = self._model.config

    def outputs(self, config: Any) -> dict[str, np.ndarray]:
        model = self._cls(config)
        model(**self._inputs, training=False)
        model.set_weights(self._model.get_weights())
        return oracle.flatten(model(**self._inputs, training=False))


class Flax:
    def __init__(self, classes: Any, folder: str, inputs: Any) -> None:
        import transformers

        self._cls = getattr(transformers, classes["flax"])
        self._model = self._cls.from_pretrained(folder, from_pt=True)
        taken, _ = oracle._accepted(self._model.__call__, inputs)
        self._inputs = {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in taken.items()}
        self.config = self._model.config

    def outputs(self, config: Any) -> dict[str, np.ndarray]:
        model = self._cls(config, _do_init=False)
        return oracle.flatten(model(**self._inputs, params=self._model.params))


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray], inputs: Any) -> float:
    """The largest difference of an output over its largest value."""
    measured = oracle.compare(one, other, inputs)["outputs"].values()
    ratios = [entry["max_abs_diff"] / (entry["scale"] or 1.0) for entry in measured if "max_abs_diff" in entry]
    return max((ratio if np.isfinite(ratio) else np.inf for ratio in ratios), default=np.inf)


if __name__ == "__main__":
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    main()
