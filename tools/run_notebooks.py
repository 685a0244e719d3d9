"""Run the notebooks of docs/ and write their outputs into them; with --check compare instead.

    python tools/run_notebooks.py [--check]

Outputs are compared as text: a notebook prints nothing that differs between machines.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Exit code 1 if a notebook says something else than it did."""
    wrong = 0
    for path in sorted((ROOT / "docs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        notebook = nbformat.read(path, as_version=4)
        before = [said(cell) for cell in notebook.cells]
        run(notebook)
        after = [said(cell) for cell in notebook.cells]
        if "--check" in sys.argv:
            for old, new in zip(before, after, strict=True):
                if old != new:
                    print(f"{path}: expected\n{old}\ngot\n{new}")
                    wrong = 1
        else:
            nbformat.write(notebook, path)
    return wrong


def run(notebook: Any) -> None:
    """In a folder of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as place:
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": place}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if "outputs" in cell:  # what frameworks log on stderr tells readers nothing
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def said(cell: Any) -> list[str]:
    """What a cell prints and shows; how a stream was cut into pieces is no part of it."""
    printed = "".join(output.text for output in cell.get("outputs", ()) if output.output_type == "stream")
    return [printed, *(o.data["text/plain"] for o in cell.get("outputs", ()) if o.output_type == "execute_result")]


if __name__ == "__main__":
    sys.exit(main())
