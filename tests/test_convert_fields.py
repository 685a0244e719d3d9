"""zoo convert: fields of a config that a form cannot say, or that what reads it has otherwise, are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import pytest

import zoo
from zoo.errors import ConfigError


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return checkpoints.save(tmp_path / "llama", "llama")


def test_an_activation_that_gguf_cannot_say_is_refused(llama: Path, tmp_path: Path) -> None:
    checkpoints.edit_config(llama, hidden_act="gelu")
    with pytest.raises(ConfigError) as caught:
        zoo.convert(llama, tmp_path / "out", "gguf")
    assert all(word in str(caught.value) for word in ("gguf", "hidden_act", "'silu'", "'gelu'"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fields", [{"hidden_act": "swish"}, {"pad_token_id": 3}, {"pretraining_tp": 2}])
def test_a_field_that_changes_nothing_is_not_refused(fields: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    checkpoints.edit_config(llama, **fields)
    done = zoo.convert(llama, tmp_path / "out", "gguf", verify=True)
    assert done.verified == "every tensor and the outputs"
    assert not any(name in note for name in fields for note in done.notes)
