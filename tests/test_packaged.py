"""The packaged graphs: the index against files and registry, and loading with neither torch nor transformers."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tolerances import TOLERANCES

from zoo import registry
from zoo.configured import GRAPHS, find_graph, find_packaged
from zoo.graph import load_graph
from zoo.ops import OPS

ROOT = Path(__file__).parents[1]
INDEX: dict[str, dict[str, Any]] = (
    json.loads((GRAPHS / "index.json").read_text()) if (GRAPHS / "index.json").is_file() else {}
)
BASE = "feature-extraction"
SMALL = ("rxnmapper", "albert-tiny-chinese")

pytestmark = pytest.mark.skipif(not INDEX, reason="no graphs are packaged: python tools/build_graphs.py")

_HEAD = "published without the head"
_POSITIONS = "published without the two position rows that no token uses"
_IDS = "published with the 512 position ids"
_DENSE = "published with the square layer of its head, without the last"
_TIED = "published with an output layer of its own; the class ties it, a checkpoint unties it when it is loaded"
_CUT = "published cut off, not rounded"
PUBLISHED_OTHERWISE: dict[str, tuple[int, str]] = {
    "antiberty": (-267786, "published with a pooler and three heads that the file holds"),
    "bart-large": (4096, _POSITIONS),
    "bart-large-cnn": (3072, f"{_POSITIONS}, and with a table of one row more"),
    "camembert-base": (-590592, "published with a pooler that the file holds"),
    "camembert-large": (-514, "published with the 514 position ids"),
    "deit-base-distilled": (1538000, _HEAD),
    "electra-base": (-590592, _DENSE),
    "electra-large": (-1049600, _DENSE),
    "electra-small": (-65792, _DENSE),
    "esm2-8m": (103514, _HEAD),
    "flan-t5-base": (-24674304, _TIED),
    "flan-t5-large": (-32899072, _TIED),
    "flan-t5-small": (-16449536, _TIED),
    "gte-base": (-512, _IDS),
    "gte-small": (-512, _IDS),
    "hiera-tiny-224": (-768784, "published with a head of 1000 classes"),
    "hubert-base": (-628288, "published rounded up"),
    "llama-3.2-1b": (5814400, _CUT),
    "llama-3.2-1b-instruct": (5814400, _CUT),
    "opt-1.3b": (4096, _POSITIONS),
    "opt-125m": (1536, _POSITIONS),
    "phi-2": (79683840, _CUT),
    "rxnmapper": (-65792, "published with a pooler that the file holds"),
    "segformer-b0-ade": (33667, "published for 19 classes, not 150"),
    "vit-base-patch16-224": (769000, _HEAD),
    "vit-base-patch16-224-in21k": (590592, "published without the pooler"),
    "wav2vec2-base": (-628288, "published rounded up"),
    "wav2vec2-base-960h": (-603680, "published rounded up"),
    "whisper-large-v3": (-6509440, "published rounded up"),
}
"""Entry -> how many parameters more than published its graph has, and why; see the registry's own sources."""


SERVED = sorted({name for facts in INDEX.values() for name in facts["entries"]})
needs_bert = pytest.mark.skipif("bert-base" not in SERVED, reason="bert-base is not packaged")


def files_of(name: str) -> list[str]:
    """The graphs that serve a registry entry."""
    return [file for file, facts in INDEX.items() if name in facts["entries"]]


# The index


def test_index_and_files_are_the_same_set() -> None:
    records = json.loads(gzip.decompress((GRAPHS / "configs.json.gz").read_bytes()))
    assert sorted(records) == sorted(INDEX)
    assert sorted(path.name for path in GRAPHS.glob("*.json.gz") if path.name != "configs.json.gz") == sorted(INDEX)


def test_index_names_registry_entries() -> None:
    assert set(SERVED) <= registry.entries().keys()
    assert all(facts["entries"] for facts in INDEX.values())
    for name in SERVED:
        assert {INDEX[file]["model_type"] for file in files_of(name)} == {registry.find(name).model_type}


@pytest.mark.parametrize("file", sorted(INDEX))
def test_graph_is_what_the_index_says(file: str) -> None:
    graph, facts = load_graph(GRAPHS / file), INDEX[file]  # which checks every name, op and argument
    for key in ("model_type", "class", "task", "dtype"):
        assert graph.meta[key] == facts[key]
    assert graph.parameter_count() == facts["parameters"]
    assert len(graph.nodes) == facts["nodes"]
    assert {node.op for node in graph.nodes} <= OPS.keys()
    assert "config" not in graph.meta


# What the authors publish


def rounds_to(count: int, published: int) -> bool:
    """Whether a count is the published one, whose trailing zeros may come from rounding."""
    unit = 10 ** (len(str(published)) - len(str(published).rstrip("0")))
    return abs(count - published) <= unit / 2


@pytest.mark.parametrize("name", SERVED)
def test_parameters_are_those_published(name: str) -> None:
    """One of the entry's graphs, with its head or without, has the published number, or the known difference."""
    published = registry.find(name).published_parameters
    assert published is not None, "a config is packaged only with a count to check it by"
    counts = {INDEX[file]["class"]: INDEX[file]["parameters"] for file in files_of(name)}
    if name in PUBLISHED_OTHERWISE:
        more, _ = PUBLISHED_OTHERWISE[name]
        assert more in {count - published for count in counts.values()}, counts
        assert not any(rounds_to(count, published) for count in counts.values()), "no exception any more"
    else:
        assert any(rounds_to(count, published) for count in counts.values()), f"{published}, the graphs have {counts}"


# Finding the graph of a config


@pytest.mark.parametrize("name", SERVED)
def test_entry_finds_its_graph(name: str) -> None:
    entry, files = registry.find(name), files_of(name)
    config = entry.config()
    own = find_packaged(config, entry.head)
    assert own in files or own is None
    for file in files:
        assert find_packaged(config, INDEX[file]["task"]) == file
        assert find_packaged(config, INDEX[file]["task"], "bfloat16") is None
    assert own is not None or files == [find_packaged(config, BASE)], "only the base model may be there alone"


@needs_bert
@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 384},
        {"hidden_act": "relu"},
        {"num_hidden_layers": 11},
        {"num_attention_heads": 6},
        {"vocab_size": 30523},
        {"layer_norm_eps": 1e-5},
        {"max_position_embeddings": 1024},
        {"type_vocab_size": 1},
        {"is_decoder": True},
        {"model_type": "roberta"},
    ],
)
def test_config_of_another_network_finds_nothing(change: dict[str, Any]) -> None:
    config = registry.find("bert-base").config()
    assert find_packaged(config, BASE) is not None
    assert find_packaged(config | change, BASE) is None


@needs_bert
@pytest.mark.parametrize(
    "change",
    [
        {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0, "initializer_range": 1.0},
        {"transformers_version": "4.0.0", "torch_dtype": "float16", "_name_or_path": "mine"},
        {"architectures": ["BertForTokenClassification"], "id2label": {"0": "a", "1": "b"}},
        {"a_field_of_some_fork": 7},
    ],
)
def test_fields_that_shape_nothing_do_not_matter(change: dict[str, Any]) -> None:
    config = registry.find("bert-base").config()
    assert find_packaged(config | change, BASE) == find_packaged(config, BASE)


@needs_bert
def test_fields_left_out_have_the_class_defaults() -> None:
    config = registry.find("bert-base").config()
    short = {"model_type": "bert", "architectures": config["architectures"]}
    assert find_packaged(short, BASE) == find_packaged(config, BASE)


# Made again


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("build_graphs", ROOT / "tools" / "build_graphs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SMALL)
def test_graph_made_again_is_the_same(name: str, tool: ModuleType) -> None:
    if name not in SERVED:
        pytest.skip(f"{name} is not packaged")
    config = registry.find(name).config()
    file = files_of(name)[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torch|transformers|copyreg)")
        graph = tool.capture(config, INDEX[file]["task"])
    assert tool.file_name(graph) == file
    assert tool.equal(tool.packaged(graph), load_graph(GRAPHS / file))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("esm2-8m", "token_dropout", False),
        ("esm2-8m", "mask_token_id", 5),
        ("mobilevit-small", "output_stride", 16),
        ("mobilevitv2-1.0", "output_stride", 8),
    ],
)
def test_a_field_that_evaluation_depends_on_is_not_ignored(name: str, field: str, value: Any) -> None:
    """Their names are like those of fields that change nothing: dropout, special tokens, what is returned."""
    config = registry.find(name).config()
    task = registry.find(name).head
    assert find_packaged(config, task) is not None
    assert find_packaged({**config, field: value}, task) is None


# Neither torch nor transformers

WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

import numpy as np
import zoo
from zoo.errors import MissingFramework

folder, backend = sys.argv[1:]
inputs = dict(np.load(f"{folder}/inputs.npz"))
model = zoo.load(folder, backend)
found = {name: np.asarray(value, np.float64) for name, value in model(**inputs).items()}
np.savez(f"{folder}/{backend}.npz", **found)
again = zoo.load(model.save(f"{folder}/package-{backend}"), backend)
assert all(np.array_equal(value, found[name]) for name, value in again(**inputs).items())
for form in ("tf-h5", "flax"):
    zoo.convert(folder, f"{folder}-{form}-{backend}", form)
    again = zoo.load(f"{folder}-{form}-{backend}", backend)
    assert all(np.array_equal(np.asarray(x), np.asarray(model.params[name])) for name, x in again.params.items())
    for name, value in again(**inputs).items():  # matrices that lie otherwise in memory may be summed in another order
        assert abs(np.asarray(value, np.float64) - found[name]).max() <= 1e-5 * abs(found[name]).max(), (form, name)
sys.modules["torch"] = sys.modules["transformers"] = None  # what find_spec takes for "not installed"
try:
    zoo.load(folder, backend, "token-classification")
except MissingFramework as error:
    assert "anyzoo[capture]" in str(error)
else:
    raise SystemExit("a graph that is not packaged was captured without torch")
del sys.modules["torch"], sys.modules["transformers"]
assert not any(name.partition(".")[0] in ("torch", "transformers") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small entry's config and random weights that fit its packaged graph, and inputs."""
    from converters import save_safetensors

    name = next((name for name in SMALL if name in SERVED), None)
    if name is None:
        pytest.skip("no small entry is packaged")
    folder, rng = tmp_path_factory.mktemp("random"), np.random.default_rng(0)
    config = registry.find(name).config()
    graph = load_graph(GRAPHS / files_of(name)[0])
    config["architectures"] = [graph.meta["class"]]
    (folder / "config.json").write_text(json.dumps(config))
    arrays = {
        p.name: (rng.normal(size=p.shape) * (0.7 * p.shape[-1] ** -0.5 if len(p.shape) > 1 else 0.3)).astype(p.dtype)
        for p in graph.params.values()
    }
    save_safetensors(folder / "model.safetensors", arrays, {"format": "pt"})
    ids = rng.integers(5, config["vocab_size"], size=(3, 9))
    np.savez(folder / "inputs.npz", input_ids=ids, attention_mask=np.arange(9) < [[9], [7], [4]])
    return folder


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "numpy"])
def test_runs_without_torch(backend: str, random_checkpoint: Path) -> None:
    script = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_TORCH, str(random_checkpoint), backend],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert script.returncode == 0, script.stderr[-3000:]
    got, expected = dict(np.load(random_checkpoint / f"{backend}.npz")), by_transformers(random_checkpoint)
    assert got
    for name, value in got.items():
        assert np.abs(value - expected[name]).max() <= TOLERANCES[backend, "float32"] * np.abs(expected[name]).max()


def by_transformers(folder: Path) -> dict[str, np.ndarray]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", module=r"(torch|transformers)")
        module = getattr(transformers, name).from_pretrained(folder, dtype=torch.float64).eval()
        inputs = {key: torch.as_tensor(value).long() for key, value in np.load(folder / "inputs.npz").items()}
        return {key: value.numpy() for key, value in module(**inputs).items()}


def test_missing_graph_is_none() -> None:
    assert find_graph({"model_type": "no-such-kind"}) is None
