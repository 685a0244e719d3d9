"""What of a Keras model survives its file: what is frozen, the optimizer's state; and what Keras makes of a graph."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tolerances import TOLERANCES

pytest.importorskip("keras")

_MODEL = """
import sys, warnings
import torch
import numpy as np, keras, zoo
from torch import nn
from zoo.errors import ZooError
class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.a, self.n, self.b = nn.Embedding(20, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)
    def forward(self, ids, mask):
        return self.b(self.n((torch.tanh(self.a(self.e(ids))) * mask[..., None]).mean(1)))
torch.manual_seed(0)
package = zoo.capture(Tagger(), ids=torch.randint(0, 20, (2, 5)), mask=torch.ones(2, 5))
folder, tolerance = sys.argv[1], float(sys.argv[2])
rng = np.random.default_rng(0)
x = {"ids": rng.integers(0, 20, (4, 6)), "mask": np.ones((4, 6), np.float32)}
labels = np.array([0, 1, 2, 0])
def value(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))
def made():
    from zoo.backends.keras import GraphModel
    loaded = package.load("keras")
    return loaded, GraphModel
"""

_FREEZING = """
loaded, GraphModel = made()
loaded.params["e.weight"].trainable = False  # before there is a Keras model of it
model = GraphModel(loaded.graph, loaded.params, output="output")
model.params["n.bias"].trainable = False
frozen = {"e.weight", "n.bias"}
model.compile(keras.optimizers.Adam(1e-2), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
before = {name: value(v) for name, v in model.params.items()}
model.fit(x, labels, epochs=2, verbose=0)
assert {n for n, v in model.params.items() if np.array_equal(value(v), before[n])} == frozen
model.save(f"{folder}/m.keras")
again = keras.saving.load_model(f"{folder}/m.keras")
assert {n for n, v in again.params.items() if not v.trainable} == frozen
assert len(again.optimizer.variables) == len(model.optimizer.variables)
for one, other in zip(model.optimizer.variables, again.optimizer.variables):
    assert np.array_equal(value(one), value(other)), one.path
for part in (model, again):  # both go on alike
    part.fit(x, labels, epochs=2, verbose=0, shuffle=False)
for name in model.params:
    assert np.abs(value(model.params[name]) - value(again.params[name])).max() <= tolerance, name
whole = GraphModel(loaded.graph, trainable=False)
whole.save(f"{folder}/whole.keras")
again = keras.saving.load_model(f"{folder}/whole.keras")
assert not again.trainable_variables
again.trainable = True
assert len(again.trainable_variables) == len(model.params)
"""

_QUANTIZE = """
loaded, GraphModel = made()
model = GraphModel(loaded.graph, loaded.params, output="output")
for mode in ("int8", "float8"):
    try:
        model.quantize(mode)
    except ZooError as error:
        assert "native" in str(error)
    else:
        raise AssertionError(mode)
ids, mask = keras.Input((None,), dtype="int32", name="ids"), keras.Input((None,), name="mask")
around = keras.Model({"ids": ids, "mask": mask}, keras.layers.Dense(8)(model({"ids": ids, "mask": mask})))
expected = value(around(x))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    around.quantize("int8")
assert any("cannot quantise a graph" in str(w.message) for w in caught)
found = value(around(x))
assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max() and (found != expected).any()
"""

_EXPORT = """
import os
loaded, GraphModel = made()
model = GraphModel(loaded.graph, loaded.params, output="output")
signature, sizes = None, ((4, 6), (3, 9))
framework = keras.backend.backend()
if framework != "tensorflow":
    try:
        model.export(f"{folder}/refused", verbose=False)
    except ZooError as error:
        assert "KERAS_BACKEND" in str(error)
    else:
        raise AssertionError
    kinds = {"ids": "int32", "mask": "float32"}
    signature = [{name: keras.InputSpec(dtype=kind, shape=(None, 6)) for name, kind in kinds.items()}]
    sizes = ((4, 6), (3, 6))
if framework != "torch":
    import tensorflow as tf
    model.export(f"{folder}/exported", verbose=False, input_signature=signature)
    served = tf.saved_model.load(f"{folder}/exported")
    for rows, length in sizes:
        given = {"ids": rng.integers(0, 20, (rows, length)), "mask": np.ones((rows, length), np.float32)}
        expected = value(model(given))
        kind = np.int32 if framework == "jax" else np.int64
        found = served.serve({"ids": tf.constant(given["ids"].astype(kind)), "mask": tf.constant(given["mask"])})
        assert np.abs(np.array(found) - expected).max() <= tolerance * np.abs(expected).max()
"""

_READ = """
import sys
import keras
import zoo
model = keras.saving.load_model(f"{sys.argv[1]}/m.keras")
print(type(model).__name__)
"""


def run(script: str, framework: str, folder: Path) -> str:
    env = os.environ | {"KERAS_BACKEND": framework, "TF_ENABLE_ONEDNN_OPTS": "0"}
    arguments = [sys.executable, "-W", "ignore", "-c", script, str(folder), str(TOLERANCES["keras", "float32"])]
    done = subprocess.run(arguments, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
@pytest.mark.parametrize("script", [_FREEZING, _QUANTIZE, _EXPORT], ids=["freezing", "quantize", "export"])
def test_a_graph_in_keras(script: str, framework: str, tmp_path: Path) -> None:
    run(_MODEL + script, framework, tmp_path)
    if script is _FREEZING:
        assert "GraphModel" in run(_READ, framework, tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keras") / "m.keras"
    code = (
        "import sys, torch, zoo\n"
        "zoo.capture(torch.nn.Linear(3, 2), input=torch.ones(2, 3)).load('keras').module.save(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], env=os.environ | {"KERAS_BACKEND": "torch"}, check=True)
    return path


@pytest.mark.parametrize(
    "order",
    [
        "import zoo, keras",
        "import keras, zoo",
        "import zoo; from zoo.backends import installed; assert installed('keras'); import keras",  # found before
        "import zoo, importlib; importlib.reload(zoo); from keras import saving; import keras",
    ],
)
def test_a_file_loads_in_either_order_of_imports(order: str, saved: Path) -> None:
    code = f"""
import sys
finders = list(sys.meta_path)
{order}
model = keras.saving.load_model(sys.argv[1])
assert type(model).__name__ == "GraphModel" and model(keras.ops.ones((1, 3)))["output"].shape == (1, 2)
assert not any(type(finder).__module__ == "zoo" for finder in sys.meta_path)
"""
    command = [sys.executable, "-W", "error", "-c", code, str(saved)]
    done = subprocess.run(
        command, env=os.environ | {"KERAS_BACKEND": "torch"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
