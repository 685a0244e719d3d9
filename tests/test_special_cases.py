"""No code per model: names of model types and classes stand in data, with the reason beside each."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from zoo.ops import OPS

transformers = pytest.importorskip("transformers")

ZOO = Path(__file__).parents[1] / "zoo"


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_no_code_names_a_model() -> None:
    types = set(transformers.CONFIG_MAPPING.keys())
    classes = {
        name
        for name in dir(transformers)
        if not name.startswith("Auto")
        and inspect.isclass(found := getattr(transformers, name, None))
        and issubclass(found, (transformers.PreTrainedModel, transformers.PretrainedConfig))
    }
    assert len(types) > 300 and len(classes) > 1000
    operations = {name.partition(".")[0] for name in OPS}  # "clip" is one
    named = [
        f"{path.relative_to(ZOO.parent)}:{line}: {text}"
        for path in sorted(ZOO.rglob("*.py"))
        for line, text in _texts(path)
        if (text in types and text not in operations) or text in classes
    ]
    assert not named


def test_each_case_says_why_and_is_of_what_transformers_has() -> None:
    found = json.loads((ZOO / "special_cases.json").read_text("utf-8"))
    assert found["version"].startswith("transformers ")
    code = "\n".join(path.read_text("utf-8") for path in ZOO.rglob("*.py"))
    for name, case in found["cases"].items():
        assert case["reason"] and case["types"], name
        assert f"special_case({json.dumps(name)})" in code or f"{json.dumps(name)})" in code, name
        for kind in case["types"]:
            assert kind in transformers.CONFIG_MAPPING or hasattr(transformers, kind), (name, kind)
