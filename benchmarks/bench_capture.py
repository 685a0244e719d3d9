"""Capturing an 8B-parameter Llama and bert-base from their configs alone: seconds and peak memory.

    python benchmarks/bench_capture.py

Each capture runs in a process of its own; peak is VmHWM, imports included.
"""

from __future__ import annotations

import json
import subprocess
import sys

from common import record

# the shape of the 8B Llama 3: its paper's table 3 (https://arxiv.org/abs/2407.21783), vocabulary 128256
LLAMA_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}

CHILD = r"""
import json, sys, time, warnings
warnings.filterwarnings("ignore")
config = json.loads(sys.argv[1])
import torch, transformers
from zoo.capture.huggingface import capture_config, config_from
torch.set_num_threads(1)
started = time.perf_counter()
graph = capture_config(config_from(config))
seconds = time.perf_counter() - started
lines = open("/proc/self/status").read().splitlines()
peak = int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) * 1024
print(json.dumps({"seconds": seconds, "peak bytes": peak, "nodes": len(graph.nodes), "ops": len(graph.op_counts()),
                  "parameters": graph.parameter_count()}))
"""


def main() -> None:
    from zoo import registry

    result = {}
    for name, config in {"llama 8B": LLAMA_8B, "bert-base": registry.find("bert-base").config()}.items():
        run = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(config)], check=True, capture_output=True, text=True
        )
        result[name] = json.loads(run.stdout.strip().splitlines()[-1])
        row = result[name]
        print(
            f"{name}: {row['seconds']:.1f} s, peak {row['peak bytes'] / 1e9:.2f} GB, {row['nodes']} nodes, "
            f"{row['ops']} distinct ops, {row['parameters'] / 1e9:.2f}B parameters",
            flush=True,
        )
    print("written to", record("capture", result).name)


if __name__ == "__main__":
    main()
