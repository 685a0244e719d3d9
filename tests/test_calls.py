"""A warm call: how many functions of Python it takes, where no clock is needed to see what it costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers

import zoo

ROOT = Path(zoo.__file__).parent
LAYERS = 4


@pytest.mark.parametrize("backend", ["torch", "native", "jax"])
def test_a_warm_call_takes_two_functions_a_node(backend: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny.config("bert")
    config.num_hidden_layers = LAYERS
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    model = zoo.load(tmp_path, backend=backend, task="fill-mask")
    inputs: dict[str, Any] = {"input_ids": np.random.default_rng(0).integers(5, 60, (2, 11))}
    for _ in range(3):
        model(**inputs)
    called: list[str] = []

    def seen(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        model(**inputs)
    finally:
        sys.setprofile(before)
    assert not [path for path in called if path.startswith(f"{ROOT}/graph/")]
    assert 0 < len(called) <= 2 * len(model.graph.nodes)
