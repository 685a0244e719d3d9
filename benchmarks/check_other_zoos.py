"""What README says of transformers and KerasHub, tried: which frameworks they serve, what they do with odd files.

transformers 4.57 is the last version with classes of TensorFlow and Flax: `--write FILE` in an environment with it
lists them. With transformers 5, `--read FILE` counts and tries, into benchmarks/results/other_zoos.json; `--keras-hub
FOLDER` is where KerasHub's wheel was unpacked (nothing of it is imported).

    python benchmarks/check_other_zoos.py --write build/transformers4.json
    python benchmarks/check_other_zoos.py --read build/transformers4.json --keras-hub build/keras_hub-0.32.0
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Write what version 4 has, or the results."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--write", type=Path)
    options.add_argument("--read", type=Path)
    options.add_argument("--keras-hub", type=Path)
    given = options.parse_args()
    if given.write:
        given.write.parent.mkdir(parents=True, exist_ok=True)
        given.write.write_text(json.dumps(classes_of_4()))
        return
    from common import record

    four = json.loads(given.read.read_text())
    result = {**model_types(four), **files()}
    if given.keras_hub:
        models = next(given.keras_hub.rglob("keras_hub/models/__init__.py")).read_text()
        result["KerasHub"] = next(given.keras_hub.glob("*.dist-info")).name.split("-")[1].removesuffix(".dist")
        result["KerasHub: backbones"] = len(set(re.findall(r"\w+Backbone\b", models)) - {"Backbone"})
    print(json.dumps(result, indent=1))
    record("other_zoos", result)


def classes_of_4() -> dict[str, Any]:
    """Model types of transformers 4, and those of them with a base class of TensorFlow or Flax."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
    from transformers.models.auto.modeling_flax_auto import FLAX_MODEL_MAPPING_NAMES
    from transformers.models.auto.modeling_tf_auto import TF_MODEL_MAPPING_NAMES

    return {
        "transformers": transformers.__version__,
        "types": sorted(MODEL_MAPPING_NAMES),
        "others": sorted({*TF_MODEL_MAPPING_NAMES, *FLAX_MODEL_MAPPING_NAMES}),
    }


def model_types(four: dict[str, Any]) -> dict[str, Any]:
    """How many model types had classes of another framework than torch, in version 4 and of those in version 5."""
    import transformers

    import zoo

    types = {row.model_type for row in zoo.architectures()}
    had = types & set(four["others"])
    return {
        "transformers 4": four["transformers"],
        "transformers 4: model types": len(four["types"]),
        "transformers 4: of them with a class of TensorFlow or Flax": len(set(four["types"]) & set(four["others"])),
        "transformers 5": transformers.__version__,
        "transformers 5: model types": len(types),
        "transformers 5: of them that version 4 had for TensorFlow or Flax": len(had),
        "transformers 5: share that was always for torch alone": round(1 - len(had) / len(types), 3),
        "transformers 5: classes of TensorFlow or Flax": sum(
            name.startswith(("TF", "Flax")) for name in dir(transformers)
        ),
    }


def files() -> dict[str, str]:
    """What transformers 5 and Anyzoo do with a TensorFlow and a Flax file, and where a tensor is missing."""
    import transformers
    from safetensors.numpy import load_file, save_file

    import zoo

    config = transformers.BertConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=2, vocab_size=99,
    )  # fmt: skip
    config.architectures = ["BertForSequenceClassification"]
    found = {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        transformers.BertForSequenceClassification(config).save_pretrained(root / "torch")
        folders = {
            "tf_model.h5": root / "tf-h5",
            "flax_model.msgpack": root / "flax",
            "a missing tensor": root / "lacks",
        }
        zoo.convert(root / "torch", root / "tf-h5", "tf-h5")
        zoo.convert(root / "torch", root / "flax", "flax")
        arrays = load_file(root / "torch" / "model.safetensors")
        del arrays["bert.encoder.layer.0.attention.self.query.weight"]
        (root / "lacks").mkdir()
        (root / "lacks" / "config.json").write_text((root / "torch" / "config.json").read_text())
        save_file(arrays, root / "lacks" / "model.safetensors", {"format": "pt"})
        for what, folder in folders.items():
            for who, load in {
                "transformers 5": transformers.AutoModelForSequenceClassification.from_pretrained,
                "Anyzoo": zoo.load,
            }.items():
                try:
                    load(folder)
                    found[f"{who}: {what}"] = "loads"
                except Exception as error:
                    found[f"{who}: {what}"] = type(error).__name__
    return found


if __name__ == "__main__":
    main()
