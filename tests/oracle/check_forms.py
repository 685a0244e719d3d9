"""Whether the programs that read a form compute what torch does, for each field of a config that matters.

    <python of the project>  tests/oracle/check_forms.py --write OUT [--only form,form/type]
    <python of the program>  tests/oracle/check_forms.py --read  OUT

For keras-hub, timm, torchvision, keras.applications and Google's npz, whose readers take some fields of a config and
have others in their code. The first command makes a tiny model of each type and `zoo convert`s it, as it is and once
more for each field of its config with another value: with the same weights, or with others where the field gives
them other shapes. Fields that change none of torch's outputs are left out. `zoo convert` has to refuse, naming the
field, or what it writes has to give torch's outputs, in float64, when the program itself opens it. The second command,
in an environment with timm and torchvision, or with keras-hub, does that for the forms whose program is there, and
writes benchmarks/results/fields_of_forms.json. Of a field it says

    said       written, and the program computes what torch does
    refused    not written, and the error names the field, or the one that it has to agree with
    noted      written with a note that names the field, and by how much the program differs
    sizes      the program has no model of these sizes, and says so itself
    unnamed    refused, without a field's name: ours to mend
    differs    ours to mend

timm stands for Google's own programs, which no registry has: its loader of their files, with the GELU that they have.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("KERAS_BACKEND", "jax")

import make_checkpoints as oracle
import numpy as np

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "fields_of_forms.json"
EFFECT = 100 * oracle.TOLERANCE  # less than that says nothing
TOKENS = 7

_TEXT = {"num_hidden_layers": 2, "vocab_size": 61, "max_position_embeddings": 31, "intermediate_size": 37}
_BERT = _TEXT | {"hidden_size": 24, "num_attention_heads": 4, "type_vocab_size": 3, "hidden_act": "gelu_new"}
_ROBERTA = _BERT | {"type_vocab_size": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "pad_token_id": 1}
_LLAMA = _TEXT | {"hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4}
_GEMMA = _LLAMA | {"head_dim": 6, "tie_word_embeddings": True}
_VIT = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 61, "num_hidden_layers": 2}
_VIT |= {"image_size": 20, "patch_size": 5, "num_labels": 7, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
_DINO = {key: value for key, value in _VIT.items() if key not in ("intermediate_size", "num_labels")}
_RESNET = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1], "embedding_size": 64, "num_labels": 7}
_BASIC, _BOTTLENECK = ({"layer_type": kind} for kind in ("basic", "bottleneck"))
_KERAS_RESNET = {"embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [1, 1, 1, 1], "num_labels": 7}
_MOBILE = {"num_labels": 7, "image_size": 32, "depth_multiplier": 0.35, "tf_padding": False, "layer_norm_eps": 1e-5}
_MOBILE |= {"finegrained_output": True, "hidden_act": "relu6"}
_SIGLIP_VISION = {key: value for key, value in _VIT.items() if key != "num_labels"} | {
    "hidden_act": "gelu_pytorch_tanh"
}
_SIGLIP_TEXT = _TEXT | {"hidden_size": 24, "num_attention_heads": 3, "projection_size": 24}
_SIGLIP = {"vision_config": _SIGLIP_VISION, "text_config": _SIGLIP_TEXT | {"max_position_embeddings": TOKENS}}
_WHISPER = {"d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 61, "num_mel_bins": 10}
_WHISPER |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37}
_WHISPER |= {"max_source_positions": 20, "max_target_positions": 31, "pad_token_id": None, "bos_token_id": 2}
_WHISPER |= {"eos_token_id": 2, "decoder_start_token_id": 3, "begin_suppress_tokens": None}
_T5 = {"d_model": 40, "d_kv": 6, "num_heads": 4, "d_ff": 37, "num_layers": 2, "num_decoder_layers": 2, "vocab_size": 61}
_GPT2 = {"n_embd": 24, "n_head": 4, "n_layer": 2, "vocab_size": 61, "n_positions": 31, "n_inner": 37}
_DISTIL = {"dim": 24, "n_heads": 4, "hidden_dim": 37, "n_layers": 2, "vocab_size": 61, "max_position_embeddings": 31}

CASES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "keras-hub": {
        "bert": ("BertModel", _BERT),
        "roberta": ("RobertaModel", _ROBERTA),
        "xlm-roberta": ("XLMRobertaModel", _ROBERTA),
        "distilbert": ("DistilBertModel", _DISTIL),
        "albert": ("AlbertModel", _BERT | {"embedding_size": 14}),
        "gpt2": ("GPT2LMHeadModel", _GPT2),
        "llama": ("LlamaForCausalLM", _LLAMA),
        "gemma": ("GemmaForCausalLM", _GEMMA),
        "gemma2": ("Gemma2ForCausalLM", _GEMMA | {"query_pre_attn_scalar": 6, "sliding_window": 4}),
        "t5": ("T5Model", _T5),
        "vit": ("ViTModel", {key: value for key, value in _VIT.items() if key != "num_labels"}),
        "whisper": ("WhisperModel", _WHISPER),
    },
    "timm": {
        "vit": ("ViTForImageClassification", _VIT),
        "deit": ("DeiTForImageClassificationWithTeacher", _VIT),
        "dinov2": ("Dinov2Model", _DINO),
        "dinov2_with_registers": ("Dinov2WithRegistersModel", _DINO | {"num_register_tokens": 3}),
        "resnet": ("ResNetForImageClassification", _RESNET | _BASIC),
        "resnet-bottleneck": ("ResNetForImageClassification", _RESNET | _BOTTLENECK),
    },
    "torchvision": {
        "vit": ("ViTForImageClassification", _VIT),
        "resnet": ("ResNetForImageClassification", _KERAS_RESNET | _BASIC | {"hidden_sizes": [64, 128, 256, 512]}),
        "resnet-bottleneck": ("ResNetForImageClassification", _KERAS_RESNET | _BOTTLENECK),
        "mobilenet_v2": ("MobileNetV2ForImageClassification", _MOBILE),
    },
    "keras-applications": {
        "resnet": ("ResNetForImageClassification", _KERAS_RESNET | _BOTTLENECK | {"downsample_in_bottleneck": True}),
        "mobilenet_v2": (
            "MobileNetV2ForImageClassification",
            _MOBILE | {"tf_padding": True, "layer_norm_eps": 1e-3},
        ),
    },
    "big-vision": {
        "vit": ("ViTForImageClassification", _VIT | {"hidden_act": "gelu_pytorch_tanh"}),
        "siglip": ("SiglipModel", _SIGLIP),
    },
}
"""Form -> type of model -> class of torch, its config."""


# --- in the project's environment ---


def write(out: Path, only: list[str]) -> None:
    """Make each model with each field's other value; OUT/<form>/<type>/<field>/case.json says what became of it."""
    for form, types in CASES.items():
        for kind, (class_name, fields) in types.items():
            if only and not {form, f"{form}/{kind}"} & set(only):
                continue
            folder = out / form / kind
            shutil.rmtree(folder, ignore_errors=True)
            for name, case in written(form, class_name, fields, folder):
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / "case.json").write_text(json.dumps(case, indent=1) + "\n")
                print(f"{form}/{kind}/{name}: {json.dumps(case)[:260]}", flush=True)


def written(form: str, class_name: str, fields: dict[str, Any], folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was changed -> field, value, and how `zoo convert` took it."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    made = getattr(transformers, class_name)
    config = made.config_class(**fields)
    model = built(made, config)
    truth = outputs(model, inputs_of(config))
    yield "as it is", converted(form, model, folder / "as it is", "")
    for field, values in variations(config):
        for value in values:
            try:
                changed = with_field(config, field, value)
                other = built(made, changed)
                new = outputs(other, inputs_of(changed))
            except Exception:
                continue  # transformers has no such model
            if shapes(other) == shapes(model) and all(near(new[name], truth[name], EFFECT) for name in truth):
                break
            name = f"{field} {json.dumps(value)}".replace("/", "")[:80]
            yield name, {"field": field, "value": value} | converted(form, other, folder / name, field)
            break


def converted(form: str, model: Any, folder: Path, field: str) -> dict[str, Any]:
    """OUT/<form>/<type>/<field>/form is what was written, and inputs and outputs in float64 lie beside it."""
    import zoo

    model.save_pretrained(folder / "torch")
    inputs = inputs_of(model.config)
    arrays = {f"in:{name}": value for name, value in inputs.items()}
    np.savez(folder / "values.npz", **arrays, **outputs(model, inputs))
    config = model.config.to_dict()
    try:
        done = zoo.convert(folder / "torch", folder / "form", form, offline=True)
    except zoo.ZooError as error:
        text = " ".join(str(error).replace(f"{folder}/", "").split())
        named = any(re.search(rf"\b{name.rpartition('.')[2]}\b", text) for name, _ in fields_of(model.config))
        return {"status": "refused" if named else "unnamed", "reason": text[:400], "config": config}
    notes = [note for note in done.notes if field and field.rpartition(".")[2] in note]
    return {"status": "noted" if notes else "said", "notes": done.notes, "config": config}


def variations(config: Any) -> Iterator[tuple[str, list[Any]]]:
    """Each field that may shape the network and other values for it, of which the first that can be built is taken."""
    import find_fields

    other = dict(find_fields.variations(config))
    for field, value in fields_of(config):
        leaf = field.rpartition(".")[2]
        if leaf == "rope_parameters":
            yield field, [value | {"rope_theta": 77.0}]
            yield field, [value | {"rope_type": "linear", "factor": 4.0}]
        elif leaf == "layer_types":
            yield field, [value[::-1]]
            yield field, [["full_attention"] * len(value)]
        elif leaf == "layer_type":
            yield field, [{"basic": "bottleneck", "bottleneck": "basic"}[value]]
        elif leaf == "depths":
            yield field, [[value[0] + 1, *value[1:]]]
        elif leaf == "hidden_sizes":
            yield field, [[2 * size for size in value]]
        elif isinstance(value, int) and not isinstance(value, bool) and field in other:
            yield field, [other[field], 2 * value] if "head" in leaf else [2 * value, other[field], value // 2]
        elif field in other:
            yield field, [other[field]]
        if value in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
            yield field, ["gelu_new" if value == "gelu" else "gelu"]


def fields_of(config: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.to_dict().items():
        inner = getattr(config, name, None)
        if hasattr(inner, "to_dict"):
            yield from fields_of(inner, f"{at}{name}.")
        elif name not in ("model_type", "architectures"):
            yield f"{at}{name}", value


def with_field(config: Any, field: str, value: Any) -> Any:
    """The config with another value; what its class derives from that is derived anew."""
    first, _, rest = field.partition(".")
    if rest:
        changed = copy.deepcopy(config)
        setattr(changed, first, with_field(getattr(config, first), rest, value))
        return changed
    derived = ("layer_types",) if field in ("num_hidden_layers", "sliding_window") else ()
    derived += ("head_dim",) if config.model_type == "llama" and field != "head_dim" else ()
    derived += ("is_gated_act", "dense_act_fn") if field == "feed_forward_proj" else ()
    return type(config)(**{k: v for k, v in config.to_dict().items() if k not in derived} | {field: value})


def built(made: Any, config: Any) -> Any:
    """A model in which nothing is at its start: norms' weights of 1 and biases of 0 hide what is left out."""
    import torch

    torch.manual_seed(0)
    bare = made.__name__ in ("ViTModel", "RobertaModel", "XLMRobertaModel")  # keras-hub's have no pooler
    model = made(config, **({"add_pooling_layer": False} if bare else {})).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape) if name.endswith("running_var") else torch.randn(tensor.shape)
                scale = 0.3 if tensor.ndim < 2 or "embed" in name else 1.5 * (tensor.shape[0] / tensor.numel()) ** 0.5
                tensor += scale * noise
        if getattr(config, "type_vocab_size", 0) == 1:  # keras-hub's RoBERTa has no token types
            model.embeddings.token_type_embeddings.weight.zero_()
    return model


def shapes(model: Any) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def inputs_of(config: Any) -> dict[str, np.ndarray]:
    """Two rows, in torch's layout, under transformers' names."""
    generator = np.random.default_rng(0)
    kind = config.model_type
    pixels, text = (getattr(config, f"{part}_config", config) for part in ("vision", "text"))
    found: dict[str, np.ndarray] = {}
    if hasattr(pixels, "num_channels"):
        size = getattr(pixels, "image_size", 64)
        found["pixel_values"] = generator.standard_normal((2, pixels.num_channels, size, size)).astype(np.float32)
    if kind == "whisper":
        shape = (2, config.num_mel_bins, 2 * config.max_source_positions)
        found["input_features"] = generator.standard_normal(shape).astype(np.float32)
    elif hasattr(text, "vocab_size"):
        found["input_ids"] = generator.integers(4, min(text.vocab_size, 30), (2, TOKENS))
        if kind != "siglip":
            found["attention_mask"] = np.ones_like(found["input_ids"])
    if kind in ("t5", "whisper"):
        found["decoder_input_ids"] = generator.integers(4, min(config.vocab_size, 30), (2, TOKENS - 2))
    if getattr(config, "type_vocab_size", 1) > 1:
        found["token_type_ids"] = generator.integers(0, 2, found["input_ids"].shape)
    return found


def outputs(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Torch's, in float64: "hidden", the last hidden states, "logits", or "image" of a model of two towers."""
    import torch

    model = copy.deepcopy(model).double()
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    tensors = {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}
    with torch.no_grad():
        if model.config.model_type == "siglip":
            return {"image": model.vision_model(tensors["pixel_values"]).pooler_output.numpy()}
        found = model(**tensors)
        if "logits" not in found:
            return {"hidden": found.last_hidden_state.numpy()}
        if "input_ids" not in inputs:
            return {"logits": found.logits.numpy()}
        return {"logits": found.logits.numpy(), "hidden": model.base_model(**tensors).last_hidden_state.numpy()}


# --- in the environment of the form's program ---


def read(out: Path, only: list[str]) -> None:
    """Open what was written with the form's own program; the result says how its outputs compare."""
    for form, (package, reader) in READERS.items():
        try:
            found = f"{package} {version(package)}{STANDS_IN.get(form, '')}"
        except PackageNotFoundError:
            continue
        for kind in CASES[form]:
            if only and not {form, f"{form}/{kind}"} & set(only):
                continue
            cases = {}
            for path in sorted((out / form / kind).glob("*/case.json")):
                cases[path.parent.name] = judged(reader, json.loads(path.read_text()), path.parent)
                print(f"{form}/{kind}/{path.parent.name}: {json.dumps(cases[path.parent.name])[:300]}", flush=True)
            if cases:
                record(form, found, kind, cases)
    counts = json.loads(RESULT.read_text())["counts"]
    print(json.dumps(counts, indent=1))
    sys.exit(any({"differs", "unnamed"} & set(found) for found in counts.values()))


def record(form: str, program: str, kind: str, cases: dict[str, Any]) -> None:
    """Put one type into the result; the others stay."""
    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {"environment": {}, "result": {}}
    environment = before["environment"] | {"command": "check_forms.py --write, then --read", form: program}
    result = dict(sorted((before["result"] | {f"{form}/{kind}": cases}).items()))
    counts = {
        one: dict(
            Counter(case["status"] for key in result if key.startswith(f"{one}/") for case in result[key].values())
        )
        for one in CASES
    }
    RESULT.write_text(json.dumps({"environment": environment, "counts": counts, "result": result}, indent=1) + "\n")


def judged(reader: Callable[..., dict[str, np.ndarray]], case: dict[str, Any], folder: Path) -> dict[str, Any]:
    if "field" in case and case["field"].startswith("text_config.") and case["status"] == "said":
        return {"status": "not read", "reason": "no program of a registry reads Google's text towers"}
    if case["status"] not in ("said", "noted"):
        return {key: case[key] for key in ("status", "reason")}
    values = dict(np.load(folder / "values.npz"))
    inputs = {name[3:]: values.pop(name) for name in list(values) if name.startswith("in:")}
    try:
        theirs = reader(folder / "form", case["config"], inputs)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".replace(str(folder), "FOLDER").split())
        sizes = "field" in case and re.search(r"size mismatch|shape|divisible|Weight format not supported", text)
        return {"status": "sizes" if sizes else "differs", "reason": text[:300]}
    off = max(apart(theirs[name], value) for name, value in values.items() if name in theirs)
    if not set(theirs) & set(values) or (case["status"] == "said" and off > oracle.TOLERANCE):
        return {"status": "differs", "relative difference": off}
    return {"status": case["status"], "relative difference": off}


def apart(one: np.ndarray, other: np.ndarray) -> float:
    if one.shape != other.shape:
        return float("inf")
    return float(np.abs(one - other).max() / np.abs(other).max())


def near(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    return apart(one, other) <= tolerance


def of_keras_hub(folder: Path, config: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import keras_hub

    backbone = keras_hub.models.Backbone.from_preset(str(folder))
    if "pixel_values" in given:
        theirs: Any = {"images": given["pixel_values"].transpose(0, 2, 3, 1)}
    else:
        decoder = given.get("decoder_input_ids")
        start = "" if decoder is None else "encoder_"
        theirs = (
            {} if decoder is None else {"decoder_token_ids": decoder, "decoder_padding_mask": np.ones_like(decoder)}
        )
        if "input_features" in given:
            theirs["encoder_features"] = given["input_features"].transpose(0, 2, 1)
        else:
            theirs |= {f"{start}token_ids": given["input_ids"], f"{start}padding_mask": given["attention_mask"]}
        if "bert" in config["model_type"] and "segment_ids" in {one.name for one in backbone.inputs}:
            types = given.get("token_type_ids", np.zeros_like(given["input_ids"]))
            theirs["segment_ids"] = types
    found = backbone.predict(theirs, verbose=0)
    if isinstance(found, dict):
        found = found.get("decoder_sequence_output", found.get("sequence_output"))
    result = {"hidden": np.asarray(found)}
    heads = {"gpt2": "GPT2CausalLM", "llama": "LlamaCausalLM", "gemma": "GemmaCausalLM", "gemma2": "GemmaCausalLM"}
    if config["model_type"] in heads:
        task = getattr(keras_hub.models, heads[config["model_type"]])(backbone=backbone, preprocessor=None)
        result["logits"] = np.asarray(task.predict(theirs, verbose=0))
    return result


def without_compiled() -> None:
    """Let torchvision be imported where its compiled operators are for another build of torch; its models use none."""
    import torch

    own = torch.library.register_fake

    def register(name: Any, *args: Any, **options: Any) -> Any:
        return (lambda made: made) if str(name).startswith("torchvision::") else own(name, *args, **options)

    torch.library.register_fake = register
    try:
        import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = own


def of_timm(folder: Path, config: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    without_compiled()
    import timm
    import torch
    from timm.models import resnet, vision_transformer

    path = next(folder.glob("model.safetensors"))
    kind, filtered = config["model_type"], None
    labels = {"num_classes": len(config.get("id2label") or ())}
    if kind == "resnet":
        block = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}[config["layer_type"]]
        widths = [size // block.expansion for size in config["hidden_sizes"]]
        model = resnet.ResNet(block, config["depths"], in_chans=config["num_channels"], channels=widths, **labels)
    else:
        names = {"vit": "vit_base_patch16_224", "deit": "deit_base_distilled_patch16_224"}
        names |= {"dinov2": "vit_small_patch14_dinov2", "dinov2_with_registers": "vit_small_patch14_reg4_dinov2"}
        options = timm_sizes(config)
        if kind.startswith("dinov2"):
            labels, filtered = {"num_classes": 0}, vision_transformer.checkpoint_filter_fn
            options |= {"mlp_ratio": config["mlp_ratio"]}
            if kind.endswith("registers"):
                options |= {"reg_tokens": config["num_register_tokens"]}
            if config["use_swiglu_ffn"]:  # as timm's giant one
                from timm.layers import SwiGLUPacked

                wide = (int(config["hidden_size"] * config["mlp_ratio"]) * 2 // 3 + 7) // 8 * 8
                options |= {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
                options |= {"mlp_ratio": (2 * wide + 0.5) / config["hidden_size"]}
        model = timm.create_model(names[kind], **options, **labels)
    timm.models.load_checkpoint(model, str(path), strict=True, filter_fn=filtered)
    return of_torch(model.forward_features if kind.startswith("dinov2") else model, model, given)


def timm_sizes(config: dict[str, Any]) -> dict[str, Any]:
    wide, inner = config["hidden_size"], config.get("intermediate_size", 0)
    return {
        "img_size": config["image_size"],
        "patch_size": config["patch_size"],
        "in_chans": config["num_channels"],
        "embed_dim": wide,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": (inner + 0.5) / wide,
        "qkv_bias": config.get("qkv_bias", True),
    }


def of_torch(call: Any, model: Any, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch

    model.eval().double()
    with torch.no_grad():
        found = call(torch.from_numpy(given["pixel_values"]).double())
    return {("hidden" if found.ndim == 3 else "logits"): found.numpy()}


def of_torchvision(folder: Path, config: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    without_compiled()
    from safetensors.torch import load_file
    from torchvision.models import MobileNetV2, VisionTransformer, resnet

    kind, labels = config["model_type"], len(config["id2label"])
    model: Any
    if kind == "resnet":
        block = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}[config["layer_type"]]
        model = resnet.ResNet(block, config["depths"], num_classes=labels)
    elif kind == "mobilenet_v2":
        model = MobileNetV2(num_classes=labels, width_mult=config["depth_multiplier"])
    else:
        sizes = [config[name] for name in ("image_size", "patch_size", "num_hidden_layers", "num_attention_heads")]
        model = VisionTransformer(*sizes, config["hidden_size"], config["intermediate_size"], num_classes=labels)
    model.load_state_dict(load_file(next(folder.glob("*.safetensors"))))
    return of_torch(model, model, given)


def of_keras_applications(folder: Path, config: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import keras
    from keras.src.applications import resnet

    pixels = given["pixel_values"].transpose(0, 2, 3, 1)
    options = {"weights": None, "classes": len(config["id2label"]), "classifier_activation": None}
    options |= {"input_shape": pixels.shape[1:]}

    def stacks(x: Any) -> Any:
        for stage, depth in enumerate(config["depths"]):
            name = f"conv{stage + 2}"
            x = resnet.stack_residual_blocks_v1(x, 64 << stage, depth, stride1=1 + (stage > 0), name=name)
        return x

    if config["model_type"] == "resnet":
        model = resnet.ResNet(stacks, False, True, **options)
    else:
        model = keras.applications.MobileNetV2(alpha=config["depth_multiplier"], **options)
    model.load_weights(next(folder.glob("*.h5")))
    return {"logits": np.asarray(model.predict(pixels, verbose=0))}


def of_google(folder: Path, config: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    without_compiled()
    import timm

    towers = config["model_type"] == "siglip"
    own = config["vision_config"] if towers else config
    options = timm_sizes(own) | {"act_layer": "gelu_tanh"}
    options["num_classes"] = 0 if towers else len(config["id2label"])
    model = timm.create_model("vit_base_patch16_siglip_224" if towers else "vit_base_patch16_224", **options)
    model.load_pretrained(str(next(folder.glob("*.npz"))))
    found = of_torch(model, model, given)
    return {"image": found["logits"]} if towers else found


READERS: dict[str, tuple[str, Callable[..., dict[str, np.ndarray]]]] = {
    "keras-hub": ("keras-hub", of_keras_hub),
    "timm": ("timm", of_timm),
    "torchvision": ("torchvision", of_torchvision),
    "keras-applications": ("keras", of_keras_applications),
    "big-vision": ("timm", of_google),
}
"""Form -> its program's package, and folder, config, inputs -> outputs."""

STANDS_IN = {"big-vision": "'s loader of Google's npz, which stands in for big_vision: no registry has that"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="convert; in the project's environment")
    mode.add_argument("--read", action="store_true", help="open and compare; in the program's environment")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="forms, or form/type, joined by commas")
    arguments = parser.parse_args()
    (write if arguments.write else read)(arguments.out, [name for name in arguments.only.split(",") if name])
