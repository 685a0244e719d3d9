"""A small sweep made up for tests: every verdict once, and text that must be escaped."""

from __future__ import annotations

from zoo.coverage import Cell, Coverage, Row

EVIL = """<script>alert("x")</script> & 'quoted' </td>"""
RIGHT = Cell(True, True, 3.1e-7, 1e-5, True, 2e-7, True, True)
WRONG = Cell(True, False, 4.2e-3, 1e-5, None, None, None, None, "logits are off by 4.2e-03")
BROKEN = Cell(reason="UnsupportedOp: histc")

SWEEP = Coverage(
    {"transformers": "5.23.0", "jax": "0.10.2"},
    (
        Row("bert", "feature-extraction", "BertModel", built=True, captured=True,
            cells={"torch": RIGHT, "jax": RIGHT, "tensorflow": RIGHT}),
        Row("bert", "fill-mask", "BertForMaskedLM", built=True, captured=True,
            cells={"torch": RIGHT, "jax": WRONG, "tensorflow": BROKEN}),
        Row("dinov2", "feature-extraction", "Dinov2Model", built=True, captured=True,
            cells={"torch": Cell(True, True, 0.0, 1e-5), "jax": RIGHT}),
        Row("gpt2", "feature-extraction", "GPT2Model", built=True, reason="data-dependent: if mask.all():"),
        Row("rwkv", "feature-extraction", "RwkvModel", reason="ImportError: rwkv is not installed"),
        Row(EVIL, "fill-mask", EVIL, built=True, captured=True,
            cells={"torch": RIGHT, "jax": Cell(True, False, float("inf"), 1e-5, reason=EVIL)}),
    ),
)  # fmt: skip
