"""A → B → A without a changed bit: every pair of forms that `zoo convert` writes, every class of 46 families.

    python benchmarks/check_round_trips.py [--only FAMILY …] [--sample N] [--seed S] [--minutes M] [--again]

The models are tiny, built by transformers 5 from the configs of tests/oracle/make_checkpoints.py: every class that a
family has, and those with an output layer twice, tied to the embedding and apart. Each is saved as safetensors, that is
converted to every form A, each A to every form B, and what came of it back to A; every file is really written and read.
The same files are converted only once, so where A → B gives what the original gave, the way back is already known.

A form either holds a model or refuses it, and says why; a form may leave out a tensor that no output needs, if it has
no place for it, and says so. Every other tensor has to come back under its name, with its shape, dtype and bytes, and
tied to what it was tied to. Two things are noted where the form is so by its own definition: KerasHub has some base
models as part of one class only, whose names come back; llama.cpp has Gemma's norms with 1 added, which rounds.

Models that are done are kept in a folder of the cache, so that a run goes on where it stopped (--again starts anew);
benchmarks/results/round_trips.json is written at the end, of all that are done and how many are not.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib
import itertools
import json
import math
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", HF_HUB_OFFLINE="1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))

import make_checkpoints as tiny
import numpy as np
import torch
import transformers
from common import environment, record

import zoo.configured
from converters import atomic, open_checkpoint
from converters.checkpoint import Checkpoint
from converters.targets import TARGETS
from zoo.convert import convert
from zoo.errors import ZooError
from zoo.sources import cache_root
from zoo.tolerances import ROUNDING
from zoo.written import RECORD

FAMILIES = (
    "bert roberta xlm-roberta camembert distilbert albert electra mpnet deberta deberta-v2 esm roformer mobilebert "
    "funnel xlnet layoutlm gpt2 gptj gpt_neo llama mistral gemma bloom opt xglm t5 mt5 bart mbart pegasus marian "
    "whisper wav2vec2 hubert vit deit beit dinov2 resnet regnet convnext convnextv2 swin segformer mobilevit clip"
).split()
_CONVERT = sys.modules["zoo.convert"]  # the attribute is the function
LEFT_OUT = "same but for what the form leaves out"
RENAMED = "same under the names of another class, the only one that the form has"
ROUNDED = "same within a rounding: the form stores weight + 1"
TIES = {"": None, "_tied": True, "_apart": False}


@dataclass(frozen=True)
class Model:
    """A class of a family; `variant` is a key of make_checkpoints' CONFIGS or VARIANTS."""

    family: str
    variant: str
    cls: str

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.cls}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=FAMILIES, choices=FAMILIES, metavar="FAMILY")
    parser.add_argument("--sample", type=int, help="so many models, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--again", action="store_true", help="also what was done before")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no model after so many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    by_family = [list(models_of(family)) for family in options.only]  # each family's first before any one's second
    models = [model for row in itertools.zip_longest(*by_family) for model in row if model is not None]
    if options.sample is not None:
        models = random.Random(options.seed).sample(models, min(options.sample, len(models)))
    kept = cache_root() / "round_trips"
    kept.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    for number, model in enumerate(models, 1):
        path = kept / f"{model.name}.json"
        if (not path.is_file() or options.again) and time.perf_counter() - begun < 60 * options.minutes:
            started = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=_memory()) as folder, _quick():
                found = Trips(Path(folder)).of(model)
            path.write_text(json.dumps(found))
            gc.collect()
            print(f"{number} of {len(models)} {model.name}: {say(found)} ({time.perf_counter() - started:.0f} s)")
            sys.stdout.flush()
    paths = {model.name: kept / f"{model.name}.json" for model in models}
    done = {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}
    totals = summary(done) | {"models not tried yet": len(models) - len(done)}
    print(json.dumps(totals, indent=1))
    if options.sample is None and list(options.only) == FAMILIES:
        record("round_trips", {"totals": totals, "models": done})
    elif options.sample is not None:
        print(f"{environment()['command']}: {len(done)} models")
    sys.exit(bool(totals["pairs"].get("differs") or totals["broken"]))


# --- which models ---


def models_of(family: str) -> Iterator[Model]:
    """Every class of a family, each variant of its layers, and its output layer tied and apart."""
    made = ("_untied", "_tied", "_apart")
    variants = [family, *(name for name, (kind, _) in tiny.VARIANTS.items() if kind == family)]
    variants = [name for name in variants if not name.endswith(made)]
    for variant in variants:
        for cls in classes_of(family):
            if variant != family and cls.endswith(("Classification", "Answering", "Choice", "Prediction")):
                continue  # a variant is of the layers: the heads on them are the plain model's
            for suffix, tied in TIES.items():
                if (tied is not None) != _has_output_layer(cls):
                    continue
                name = variant + suffix
                if suffix:
                    changes = tiny.VARIANTS[variant][1] if variant != family else {}
                    tiny.VARIANTS[name] = (family, changes | {"tie_word_embeddings": tied})
                yield Model(family, name, cls)


def classes_of(family: str) -> list[str]:
    """The classes of transformers that have weights of this model type, or of a part of it."""
    folder = family.replace("-", "_")
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    names = []
    for name in module.__all__:
        found = getattr(module, name)
        if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
            continue
        if found.config_class is not None and not name.endswith("PreTrainedModel") and found.forward is not _NONE:
            names.append(name)
    return names


_NONE = transformers.PreTrainedModel.__dict__.get("forward", torch.nn.Module.forward)


def _has_output_layer(cls: str) -> bool:
    """Whether a class ties an output layer to its embedding if its config says so."""
    keys = getattr(transformers, cls)._tied_weights_keys or {}
    layers = r"lm_head|decoder\.(weight|bias)$|proj_out|predictions|cls|lm_loss|vocab_projector"
    return any(re.search(layers, key) for key in keys)


_HEADS = {  # of those whose configs differ
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "QuestionAnswering": "question-answering",
    "ForPreTraining": "pretraining",
    "CLIPText": "text",
    "CLIPVision": "vision",
}


def build(model: Model, folder: Path) -> None:
    """Saves it as transformers does; its values depend on the model alone."""
    head = next((head for part, head in _HEADS.items() if part in model.cls), "base")
    built = tiny.build(tiny.Case(model.variant, head, {"torch": model.cls}))
    parameters = dict(built.named_parameters())
    for name in parameters:  # published files have one bias there, whether the weights are tied or not
        if (other := name.replace("decoder.bias", "bias")) != name and other in parameters:
            parameters[name].data.copy_(parameters[other].data)
    built.save_pretrained(folder)


# --- there and back ---


@dataclass
class State:
    """What a folder holds: its files' digest, each tensor as (dtype, shape, hash), and what is tied to what.

    Of one that was converted, `dropped` is what was left out, and `names` has the source's tensors of each here.
    """

    folder: Path
    digest: str
    tensors: Mapping[str, tuple[str, tuple[int, ...], str]]
    tied: Mapping[str, str]
    snapshot: Checkpoint
    dropped: Mapping[str, str]
    names: Mapping[str, str]

    def made_of(self, name: str) -> set[str]:
        return {name, *self.names.get(name, "").split(", ")}


class Trips:
    """One model through all the forms; `root` is an empty folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[tuple[str, str], State] = {}
        self.states: dict[str, State] = {}
        self.conversions = 0

    def of(self, model: Model) -> dict[str, Any]:
        found: dict[str, Any] = {"family": model.family, "class": model.cls}
        try:
            build(model, self.root / "source")
        except Exception as error:  # such a model there is not
            return found | {"not built": _line(error)}
        source = self.state(self.root / "source", {}, {})
        found |= {"tensors": len(source.tensors), "tied": len(source.tied)}
        held: dict[str, State] = {}
        refused, broken = {}, {}
        for form in TARGETS:
            try:
                held[form] = self.converted(source, form)
            except ZooError as error:
                refused[form] = _line(error)
            except Exception as error:
                broken[form] = f"{type(error).__name__}: {_line(error)}"
        found |= {"forms": sorted(held), "refused": refused, "broken": broken}
        found["left out"] = {form: dict(Counter(state.dropped.values())) for form, state in held.items()}
        back = {form: self.trip(source, "safetensors", form, compared=source) for form in held}
        pairs = {f"{a} {b}": self.trip(held[a], a, b) for a in held for b in held if a != b}
        counts = Counter(status for status, _ in [*pairs.values()])
        found |= {"pairs": dict(counts), "back": dict(Counter(status for status, _ in back.values()))}
        odd = {pair: facts for pair, (status, facts) in pairs.items() if status == "differs"}
        odd |= {f"original {form}": facts for form, (status, facts) in back.items() if status == "differs"}
        return found | ({"differs": odd} if odd else {}) | {"conversions": self.conversions}

    def trip(self, first: State, a: str, b: str, compared: State | None = None) -> tuple[str, str]:
        """How A → B → A ended, and what is wrong."""
        try:
            there = self.converted(first, b)
            back = self.converted(there, a)
        except Exception as error:
            return "differs", f"{type(error).__name__}: {_line(error)}"
        compared = compared or first
        if back.digest == compared.digest:
            return "same", ""
        new, lacking = back.tensors.keys() - compared.tensors.keys(), compared.tensors.keys() - back.tensors.keys()
        changed = [
            name for name in back.tensors.keys() & compared.tensors if back.tensors[name] != compared.tensors[name]
        ]
        rounded = [name for name in changed if _a_rounding_off(compared.snapshot.read(name), back.snapshot.read(name))]
        dropped = {*there.dropped, *back.dropped}
        lost = {name for name in lacking if not first.made_of(name) & dropped}
        renamed = Counter(compared.tensors[name] for name in lost) == Counter(back.tensors[name] for name in new)
        if (lost or new) and not renamed:
            return "differs", f"lost: {', '.join(sorted(lost))[:400]}; new: {', '.join(sorted(new))[:400]}"
        ties = {name: other for name, other in compared.tied.items() if name not in lacking}
        if len(changed) > len(rounded) or (dict(back.tied) != ties and a == "safetensors"):
            return "differs", f"changed: {', '.join(changed)[:400]}; tied: {dict(back.tied)}, before {ties}"
        kinds = {ROUNDED: rounded, RENAMED: lost, LEFT_OUT: lacking}
        return next((kind for kind, names in kinds.items() if names), "same"), ""

    def converted(self, source: State, form: str) -> State:
        """A folder's conversion; the same files are converted once."""
        key = (source.digest, form)
        if key not in self.made:
            self.conversions += 1
            out = self.root / f"{self.conversions}-{form}"
            with mock.patch.object(_CONVERT, "open_checkpoint", lambda _: source.snapshot):  # it was read before
                done = convert(source.folder, out, form, offline=True)
            self.made[key] = self.state(out, done.dropped, done.names)
        return self.made[key]

    def state(self, folder: Path, dropped: Mapping[str, str], names: Mapping[str, str]) -> State:
        digest = hashlib.sha256()
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD):
            digest.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        key = digest.hexdigest()
        if key in self.states:  # the same once more
            shutil.rmtree(folder)
            known = self.states[key]
            return State(known.folder, key, known.tensors, known.tied, known.snapshot, dropped, names)
        with open_checkpoint(folder) as checkpoint:
            snapshot = Snapshot(checkpoint)
        tensors = {
            name: (str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())
            for name, array in snapshot.items()
        }
        self.states[key] = State(folder, key, tensors, dict(snapshot.aliases), snapshot, dropped, names)
        return self.states[key]


class Snapshot(Checkpoint):
    """All that a checkpoint said and held, without its file."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.path, checkpoint.infos, metadata=checkpoint.metadata, aliases=checkpoint.aliases)
        self.format = checkpoint.format  # type: ignore[misc]
        self._arrays = {name: np.array(array) for name, array in checkpoint.items()}

    def _read(self, info: Any) -> np.ndarray:
        return self._arrays[info.name].view()

    def close(self) -> None:
        """Stays open for the next conversion."""

    def _close(self) -> None: ...


@contextlib.contextmanager
def _quick() -> Iterator[None]:
    """No waiting for the disk, and each graph is read once: neither changes what is written."""
    graphs: dict[str, Any] = {}
    graph_for = zoo.configured.graph_for

    def remembered(config: Mapping[str, Any], *rest: Any, **options: Any) -> Any:
        key = json.dumps([config, rest, options], sort_keys=True)
        if key not in graphs:
            graphs[key] = graph_for(config, *rest, **options)
        return graphs[key]

    with (
        mock.patch.object(os, "fsync", lambda _: None),
        mock.patch.object(atomic, "_flushing", lambda _: contextlib.nullcontext()),
        mock.patch.object(zoo.configured, "graph_for", remembered),
    ):
        yield


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _a_rounding_off(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    limit = ROUNDING[one.dtype.name] * np.maximum(1, np.abs(one))
    return bool((np.abs(one - other) <= limit).all())


def _line(error: BaseException) -> str:
    """The error's first line, and what it got."""
    lines = [line.strip() for line in str(error).splitlines() if not line.strip().startswith(("where:", "try:"))]
    return " ".join(line for line in lines if not line.startswith("expected:"))[:300]


# --- what is said of it ---


def say(found: Mapping[str, Any]) -> str:
    if "not built" in found:
        return f"not built: {found['not built']}"
    words = [f"{len(found['forms'])} forms", *(f"{n} pairs {status}" for status, n in found["pairs"].items())]
    words += [f"{pair} {facts}" for pair, facts in found.get("differs", {}).items()][:4]
    words += [f"BROKEN {form} {why}" for form, why in found["broken"].items()]
    return ", ".join(words)


def summary(done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How many models and pairs there are of each status."""
    built = {name: found for name, found in done.items() if "not built" not in found}
    pairs: Counter[str] = Counter()
    back: Counter[str] = Counter()
    forms: Counter[str] = Counter()
    refusals: dict[str, Counter[str]] = {}
    for found in built.values():
        pairs.update(found["pairs"])
        back.update(found["back"])
        forms.update(found["forms"])
        for form, why in found["refused"].items():
            refusals.setdefault(form, Counter())[why.partition(" got:")[0]] += 1
    return {
        "families": len({found["family"] for found in built.values()}),
        "models": len(built),
        "pairs": dict(pairs),
        "original to a form and back": dict(back),
        "models that a form holds": {form: forms[form] for form in TARGETS},
        "models that a form refuses": refusals,
        "broken": sum(bool(found["broken"]) for found in built.values()),
        "not built": {name: found["not built"] for name, found in done.items() if "not built" in found},
    }


if __name__ == "__main__":
    main()
