"""What bench_native.py measured, as a picture: benchmarks/results/native.svg.

    python benchmarks/plot.py

Needs matplotlib. Each bar is a time relative to torch eager's in the same run: shorter is faster.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"

ORDER = {"torch eager": "#9aa0a6", "onnxruntime": "#5f8dd3", "openvino": "#e0a13c", "native": "#1d7a46"}
"""What is drawn, in float32, and in which colour."""


def main() -> None:
    plt.rcParams |= {"svg.hashsalt": "anyzoo", "svg.fonttype": "none"}  # the same small file from the same numbers
    runs = [(1, RESULTS / "native.json"), (2, RESULTS / "native_2_threads.json")]
    found = [(threads, json.loads(path.read_text())) for threads, path in runs if path.is_file()]
    figure, axes = plt.subplots(len(found), 1, figsize=(11, 3.6 * len(found)), squeeze=False, layout="constrained")
    for axis, (threads, data) in zip(axes[:, 0], found, strict=True):
        models = data["result"]["models"]
        width = 0.8 / len(ORDER)
        for number, (who, colour) in enumerate(ORDER.items()):
            places = [i + number * width for i, rows in enumerate(models.values()) if who in rows]
            ratios = [rows[who]["ratio to torch eager"] for rows in models.values() if who in rows]
            axis.bar(places, ratios, width * 0.92, color=colour, label=who)
        names = ["\n".join(textwrap.wrap(name, 10)) for name in models]
        axis.set_xticks([i + 1.5 * width for i in range(len(models))], names, fontsize=8)
        axis.set_ylabel("time, torch eager = 1")
        axis.set_title(
            f"float32, {threads} thread{'s' * (threads > 1)}, {data['environment']['cpu']}", loc="left", fontsize=10
        )
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=len(ORDER), frameon=False)
    figure.savefig(RESULTS / "native.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
