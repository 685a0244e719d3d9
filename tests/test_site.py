"""The site of `make docs`: it builds without a warning, and each page fits a phone and a desktop in a browser."""

from __future__ import annotations

import functools
import html
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
pytestmark = pytest.mark.xdist_group("site")

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (360, 1440)
# Loads each page at each width. Wrong is what reaches beyond the page where nothing scrolls, what a box cuts off, and
# on a desktop what has to be scrolled sideways.
HARNESS = """<!doctype html><body><script>
const found = {}, rest = ms => new Promise(done => setTimeout(done, ms));
const load = (page, width) => new Promise(done => {
  const frame = document.createElement("iframe");
  frame.style = `border:0;width:${width}px;height:900px`;
  frame.onload = () => done(frame);
  frame.src = page;
  document.body.append(frame);
});
const scrolls = (element, inside, w) => {
  for (let box = element; box && box !== inside; box = box.parentElement)
    if (["auto", "scroll"].includes(w.getComputedStyle(box).overflowX)) return true;
  return false;
};
const look = (frame, width) => {
  const w = frame.contentWindow, d = w.document, wrong = [];
  if (d.scrollingElement.scrollWidth > width) wrong.push(`the page is ${d.scrollingElement.scrollWidth} wide`);
  const article = d.querySelector("article");
  if (!article || article.innerText.length < 50) return ["no article"];
  for (const element of article.querySelectorAll("*")) {
    const box = element.getBoundingClientRect(), style = w.getComputedStyle(element);
    if (!box.width || style.position === "absolute" || style.clip !== "auto") continue;
    const name = `${element.tagName} ${element.textContent.trim().slice(0, 40)}`;
    if ((box.right > width + 1 || box.left < -1) && !scrolls(element.parentElement, article, w))
      wrong.push(`beyond the page: ${name}`);
    if (style.overflowX === "hidden" && element.scrollWidth > element.clientWidth + 1) wrong.push(`cut off: ${name}`);
  }
  if (width > 1000)
    for (const box of article.querySelectorAll("pre, pre > code, .md-typeset__scrollwrap, .md-typeset__table"))
      if (box.scrollWidth > box.clientWidth + 1 && w.getComputedStyle(box).overflowX !== "visible")
        wrong.push(`scrolls, ${box.scrollWidth} in ${box.clientWidth}: ${box.textContent.trim().slice(0, 60)}`);
  for (const image of article.querySelectorAll("img"))
    if (!image.naturalWidth || image.getBoundingClientRect().width < Math.min(width, 300) * 0.5)
      wrong.push(`no picture: ${image.getAttribute("src")}`);
  return wrong;
};
(async () => {
  for (const page of PAGES)
    for (const width of WIDTHS) {
      const frame = await load(page, width);
      await rest(50);
      found[`${page} at ${width}`] = look(frame, width);
      frame.remove();
    }
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
})();
</script></body>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


def seen(site: Path, pages: list[str]) -> Any:
    """What the harness found on pages of a folder, by page and width."""
    harness = HARNESS.replace("PAGES", json.dumps(pages)).replace("WIDTHS", json.dumps(WIDTHS))
    (site / "harness.html").write_text(harness)
    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server",
            f"--user-data-dir={site.parent / 'profile'}", "--virtual-time-budget=600000", "--dump-dom",
            f"http://127.0.0.1:{server.server_address[1]}/harness.html",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        server.shutdown()
    written = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert written, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(html.unescape(written[1]))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_every_link_and_picture_is_in_the_site(site: Path) -> None:
    """Nothing is fetched from elsewhere when a page is read."""
    for page in site.rglob("*.html"):
        for tag, target in re.findall(r'<(img|script|link|iframe)\b[^>]*?\b(?:src|href)="([^"]+)"', page.read_text()):
            assert not re.match(r"(https?:)?//", target), f"{page.name} loads {target} by {tag}"


@pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="no Chromium is installed")
def test_pages_fit_a_phone_and_a_desktop(site: Path) -> None:
    pages = sorted(
        p.relative_to(site).as_posix() for p in site.rglob("*.html") if p.name not in ("404.html", "harness.html")
    )
    assert len(pages) > 20
    found = seen(site, pages)
    assert len(found) == len(pages) * len(WIDTHS)
    wrong = {where: what[:20] for where, what in found.items() if what}
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="no Chromium is installed")
def test_what_does_not_fit_is_noticed(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    text = "words " * 20
    for name, body in {
        "fits": f"{text}<div style='overflow-x:auto'><div style='width:3000px'>wide</div></div>",
        "wide": f"{text}<div style='width:3000px'>wide</div>",
        "cut": f"{text}<div style='overflow:hidden;width:100px'><div style='width:300px'>cut</div></div>",
        "code": f"{text}<pre style='overflow:auto'>{'x' * 400}</pre>",
        "lost": f"{text}<img src='nothing.svg' style='width:300px;height:90px'>",
    }.items():
        (site / f"{name}.html").write_text(f"<!doctype html><article>{body}</article>")
    names = ("fits", "wide", "cut", "code", "lost")
    found = seen(site, [f"{name}.html" for name in names])
    assert [bool(found[f"{name}.html at 360"]) for name in names] == [False, True, True, False, True]
    assert [bool(found[f"{name}.html at 1440"]) for name in names] == [False, True, True, True, True]
