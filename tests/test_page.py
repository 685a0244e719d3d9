"""The page that `zoo list --html` writes: parsed, compared with the sweep, and used in a browser where there is one."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sweep import EVIL, SWEEP

from zoo import catalogue, cli, page, registry
from zoo.coverage import Cell, Coverage, Row
from zoo.errors import ConfigError

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """Tables by id, all elements with their attributes, and the text outside script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[tuple[str, dict[str, str | None]]]]] = {}
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._stack: list[str] = []
        self._rows: list[list[tuple[str, dict[str, str | None]]]] = []
        self.feed(text)
        self.close()
        assert not self._stack, f"not closed: {self._stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append((tag, given))
        if tag not in VOID:
            self._stack.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(given.get("id") or "", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append(("", given))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._stack.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self._stack and self._stack[-1] not in ("script", "style"):
            self.text += data
        if {"td", "th"} & set(self._stack) and self._rows and self._rows[-1]:
            before, given = self._rows[-1][-1]
            self._rows[-1][-1] = before + data, given

    def rects(self, label: str) -> list[dict[str, str | None]]:
        """The rectangles of the picture with that label."""
        start = next(i for i, (tag, given) in enumerate(self.elements) if tag == "svg" and given["aria-label"] == label)
        end = next(
            (i for i, (tag, _) in enumerate(self.elements[start + 1 :], start + 1) if tag not in ("rect", "title")),
            len(self.elements),
        )
        return [given for tag, given in self.elements[start:end] if tag == "rect"]


@pytest.fixture
def shown(sweep: Coverage) -> Page:
    return Page(page.render())


def test_the_matrix_is_the_sweep(shown: Page) -> None:
    head, *rows = shown.tables["matrix"]
    backends = catalogue.swept()
    assert [text for text, _ in head] == ["type", "task", *backends, "class"]
    assert [[text for text, _ in row] for row in rows] == [
        [row.model_type, row.task, *(catalogue.verdict(row, name) for name in backends), row.architecture]
        for row in SWEEP.rows
    ]
    for row, cells in zip(SWEEP.rows, rows, strict=True):
        assert [given["title"] for _, given in cells[2:-1]] == [catalogue.describe(row, name) for name in backends]
        assert cells[0][1]["scope"] == "row"


def test_every_model_of_the_registry_is_there(shown: Page) -> None:
    head, *rows = shown.tables["registry"]
    assert [text for text, _ in head][-1] == "licence"
    found = {cells[0][0]: [text for text, _ in cells] for cells in rows}
    assert sorted(found) == sorted(registry.entries())
    assert found["bert-base"][1:3] == ["bert", "fill-mask"]
    assert found["bert-base"][3:] == ["matches", "runs", "captured", "109,514,298", "packaged", "apache-2.0"]
    assert found["t5-small"][3:6] == ["", "", ""]
    models = {item.name: item for item in catalogue.available()}
    for name, cells in found.items():
        assert cells[6].replace(",", "") == str(models[name].parameters or "")


def test_all_text_is_escaped(shown: Page) -> None:
    assert sum(tag == "script" for tag, _ in shown.elements) == 1
    assert shown.text.count(EVIL) >= 2  # its type and its class, as text
    assert EVIL in [given.get("title", "").partition("; ")[2] for tag, given in shown.elements if tag == "td"]


def test_nothing_is_fetched(sweep: Coverage) -> None:
    text = page.render()
    assert not re.search(r"https?://|@import|url\(", text)
    assert [given["href"] for tag, given in Page(text).elements if tag in ("link", "a")] == ["data:,", "#architectures"]
    assert not any("src" in given for _, given in Page(text).elements)
    assert "{{" not in text


def test_shares_are_those_of_the_base_models(shown: Page) -> None:
    """Two of three match on jax; that transformers does not build one is not counted."""
    bars = {row[0][0]: row for row in shown.tables[""] if len(row) == 3}
    assert bars["jax"][2][0] == "matches 2, fails 1"
    assert bars["tensorflow"][2][0] == "matches 1, captured 1, fails 1"
    assert bars["transformers 5.23.0"][2][0] == "3 torch-only"
    assert bars["with Anyzoo"][2][0] == "2 on jax, tensorflow too; 1 torch-only"
    widths = {given["class"]: float(given["width"] or 0) for given in shown.rects("matches 1, captured 1, fails 1")}
    assert widths == {"m": pytest.approx(100 / 3, abs=1e-3), "c": pytest.approx(100 / 3, abs=1e-3),
                      "f": pytest.approx(100 / 3, abs=1e-3), "r": 0, "n": 0}  # fmt: skip


def test_a_transformers_with_other_frameworks_is_not_called_torch_only(use: Callable[[Coverage], None]) -> None:
    use(Coverage({"transformers": "4.57.1"}, SWEEP.rows))
    assert "transformers 4.57.1" not in Page(page.render()).text
    assert "with Anyzoo" in Page(page.render()).text


def test_the_plot_counts_every_error(use: Callable[[Coverage], None]) -> None:
    rng = random.Random(0)
    errors = [10 ** rng.uniform(-9, -5) for _ in range(300)]
    rows = [
        Row(f"{i}", "fill-mask", built=True, captured=True, cells={"jax": Cell(True, i % 3 > 0, error, 1e-5)})
        for i, error in enumerate([*errors, 0.0, float("nan")])
    ]
    use(Coverage({}, tuple(rows)))
    shown = Page(page.render())
    label = next(
        given["aria-label"] for tag, given in shown.elements if tag == "svg" and "too large" in str(given["aria-label"])
    )
    rects = shown.rects(str(label))
    assert label and label.startswith("jax: 201 match") and label.endswith("101 too large")
    assert sum(given["class"] == "f" for given in rects) == 101
    counts = page._histogram(
        [page._log(row.cells["jax"].error or 0) for row in rows if row.cells["jax"].matches], -12, 2
    )
    heights = [float(given["height"] or 0) for given in rects if given["class"] == "m"]
    assert sum(counts) == 201 and heights == [pytest.approx(40 * n / max(counts), abs=0.01) for n in counts if n]
    assert all(0 <= float(given["x"] or 0) <= 100 for given in rects)


@pytest.mark.usefixtures("no_sweep")
def test_without_a_sweep_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to show"):
        page.write_page(tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_writes_it(sweep: Coverage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["list", "--html", str(tmp_path / "page.html")])
    assert not end.value.code and (tmp_path / "page.html").read_text("utf-8") == page.render()
    assert "page.html" in capsys.readouterr().out


# In a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HARNESS = """<!doctype html><body>
<iframe id="page" src="page.html#task=fill-mask" style="border:0;width:390px;height:800px"></iframe>
<script>
const frame = document.getElementById("page");
frame.onload = async () => {
  const w = frame.contentWindow, d = w.document, found = {};
  const rest = ms => new Promise(done => setTimeout(done, ms));
  const shown = () => [...d.querySelectorAll("#matrix tbody tr")].filter(row => !row.hidden)
    .map(row => row.cells[0].textContent);
  const press = (key, on) => on.dispatchEvent(new w.KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const form = d.querySelector('[data-table="matrix"]');
  const set = async (name, value) => {
    form.elements[name].value = value;
    form.dispatchEvent(new w.Event("input", { bubbles: true }));
    await rest(20);
    return shown();
  };
  found.address = shown().length;
  found.task = await set("task", "");
  found.on_tensorflow = (await set("on", "tensorflow")).length;
  found.matching = await set("found", "matches");
  found.missing = await set("found", "!matches");
  await set("on", ""); await set("found", "");
  found.by_reason = await set("q", "histc bert");
  found.said = form.querySelector("output").textContent;
  found.hash = w.location.hash;
  form.reset(); await rest(20);
  found.reset = shown().length;
  press("/", d.body);
  found.search_has_focus = d.activeElement === form.elements.q;
  const tabs = [...d.querySelectorAll("#matrix [tabindex='0']")];
  found.tab_stops = tabs.length;
  tabs[0].focus();
  for (const key of ["ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight"]) press(key, d.activeElement);
  found.walked = d.activeElement.textContent;
  found.why = d.getElementById("why").hidden ? "" : d.getElementById("why").textContent;
  const box = d.getElementById("why").getBoundingClientRect();
  found.inside = box.left >= 0 && box.right <= 390 && box.top >= 0 && box.bottom <= 800;
  found.outline = w.getComputedStyle(d.activeElement).outlineStyle;
  press("Escape", d.activeElement);
  found.closed = d.getElementById("why").hidden;
  found.width = d.scrollingElement.scrollWidth;
  const scroll = d.getElementById("matrix").parentNode;
  scroll.scrollLeft = 200;
  found.sticky = d.querySelector("#matrix tbody th").getBoundingClientRect().left - scroll.getBoundingClientRect().left;
  found.alerts = w.alerted === true;
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
};
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser(sweep: Coverage, tmp_path: Path) -> None:
    page.write_page(tmp_path / "page.html")
    (tmp_path / "harness.html").write_text(HARNESS)
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=15000",
    ]  # fmt: skip
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "harness.html").as_uri()], capture_output=True, text=True, check=True
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    written = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert written, done.stdout[-2000:]
    found = json.loads(written[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    types = [row.model_type for row in SWEEP.rows]
    assert found["address"] == 2 and found["task"] == types and found["on_tensorflow"] == 6
    assert found["matching"] == ["bert"] and found["missing"] == types[1:]
    assert found["by_reason"] == ["bert"] and found["said"] == "1 of 6 shown" and "q=histc" in found["hash"]
    assert found["reset"] == 6 and found["search_has_focus"] and found["tab_stops"] == 1
    assert found["walked"] == "runs" and found["why"] == f"bert on jax{catalogue.describe(SWEEP.rows[1], 'jax')}"
    assert found["inside"] and found["outline"] == "solid" and found["closed"] and not found["alerts"]
    assert found["width"] <= 390 and abs(found["sticky"]) <= 2, "a phone scrolls the table, not the page"

    for name, size in (("desktop", "1280,900"), ("phone", "500,900")):
        picture = tmp_path / f"{name}.png"
        subprocess.run(
            [*command, f"--window-size={size}", f"--screenshot={picture}", (tmp_path / "page.html").as_uri()],
            capture_output=True, check=True,
        )  # fmt: skip
        assert picture.stat().st_size > 10_000
