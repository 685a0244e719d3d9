"""Whether transformers 4.57 computes what torch does from what `zoo convert` writes where the config matters.

    <python of the project> tests/oracle/check_fields.py --write OUT
    <oracle python>         tests/oracle/check_fields.py --read  OUT

Models whose rotary base is none of the usual, whose output layer is apart though the config ties it, and the other way
round. The first command makes and converts them; the second, in the environment of requirements.txt, loads each with
the class's own from_pretrained and writes benchmarks/results/fields_written.json: how far its logits are from torch's,
over the largest.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}

import numpy as np

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "fields_written.json"
TOLERANCE = 1e-4  # of the largest value, as in make_checkpoints.py
IDS = np.arange(3, 12)[None]
SIZES = {"hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 37}
SIZES |= {"num_hidden_layers": 2, "vocab_size": 61, "max_position_embeddings": 31}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
_TEXT = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}

CASES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "rotary base": ("Mistral", "ForCausalLM", SIZES | _ROPE, "tf-h5"),
    "output layer apart": ("Bert", "ForMaskedLM", _TEXT, "flax"),
    "output layer tied": ("Llama", "ForCausalLM", SIZES | {"tie_word_embeddings": True}, "flax"),
    "output layer tied in TensorFlow": ("Mistral", "ForCausalLM", SIZES | {"tie_word_embeddings": True}, "tf-h5"),
}


def write(out: Path) -> None:
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    import zoo

    for name, (family, head, fields, form) in CASES.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**fields)
        model = getattr(transformers, family + head)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn(parameter.shape) * (0.2 if parameter.ndim > 1 else 1)
        folder = out / name
        model.save_pretrained(folder / "torch")
        if name == "output layer apart":
            arrays = load_file(folder / "torch" / "model.safetensors")
            own = arrays["bert.embeddings.word_embeddings.weight"][::-1].copy()
            save_file(arrays | {"cls.predictions.decoder.weight": own}, folder / "torch" / "model.safetensors")
            with torch.no_grad():
                model.cls.predictions.decoder.weight = torch.nn.Parameter(torch.from_numpy(own))
        with torch.no_grad():
            np.save(folder / "logits.npy", model(torch.from_numpy(IDS)).logits.numpy())
        zoo.convert(folder / "torch", folder / "written", form, verify=True)


def read(out: Path) -> None:
    import transformers

    result = {}
    for name, (family, head, _, form) in CASES.items():
        cls = getattr(transformers, ("TF" if form == "tf-h5" else "Flax") + family + head)
        logits = np.asarray(cls.from_pretrained(str(out / name / "written"))(IDS.astype(np.int32)).logits)
        expected = np.load(out / name / "logits.npy")
        off = float(np.abs(logits - expected).max() / np.abs(expected).max())
        result[name] = {"class": cls.__name__, "relative difference": off, "ok": off <= TOLERANCE}
        print(name, result[name], flush=True)
    environment = {"command": "check_fields.py --write, then --read", "transformers": transformers.__version__}
    RESULT.write_text(json.dumps({"environment": environment, "result": result}, indent=1) + "\n")
    sys.exit(not all(entry["ok"] for entry in result.values()))


if __name__ == "__main__":
    {"--write": write, "--read": read}[sys.argv[1]](Path(sys.argv[2]))
