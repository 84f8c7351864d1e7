#!/usr/bin/env python3
"""Draws the Mermaid diagrams of the pages that are not drawn yet: docs/images/diagrams/<hash of the source>.svg

The pages hold the sources, which a code host draws by itself. The site shows these files, because Mermaid is a script
of 3.5 MB that the theme would load from another host. A page whose diagram was changed does not build until this script
has run. It needs npm, which fetches Mermaid, and Chromium.
"""

import html
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from site_hooks import DIAGRAM, DIAGRAMS, diagram_of

ROOT = Path(__file__).resolve().parents[1]

MERMAID = "mermaid@11.17.2"
PAGE = """<!doctype html><meta charset="utf-8"><script src="package/dist/mermaid.min.js"></script>
<pre id="source">%s</pre>
<script>
mermaid.initialize({startOnLoad: false, theme: "neutral", htmlLabels: false,
  flowchart: {htmlLabels: false, useMaxWidth: false, wrappingWidth: 400}});
mermaid.render("diagram", document.getElementById("source").textContent)
  .then(({svg}) => { document.body.innerHTML = svg; }, error => { document.body.textContent = "Error: " + error; });
</script>"""


def draw(source: str, folder: Path) -> str:
    """Mermaid's SVG. folder: with its package."""
    page = folder / "page.html"
    page.write_text(PAGE % html.escape(source))
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--virtual-time-budget=9999",
    ]
    command = [browser, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()]
    document = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"<svg.*</svg>", document, re.DOTALL)
    if not found or "Syntax error" in found[0]:
        sys.exit(f"Mermaid cannot draw this:\n{source}\n{document[-500:]}")
    return found[0]


def main() -> None:
    texts = [page.read_text() for page in (ROOT / "docs").rglob("*.md")]
    sources = [source for text in texts for source in DIAGRAM.findall(text)]
    wanted = {ROOT / "docs" / diagram_of(source): source for source in sources}
    folder = ROOT / "docs" / DIAGRAMS
    folder.mkdir(exist_ok=True)
    for path in set(folder.glob("*.svg")) - wanted.keys():
        path.unlink()
    missing = {path: source for path, source in wanted.items() if not path.exists()}
    if not missing:
        return
    with tempfile.TemporaryDirectory() as place:
        packed = subprocess.run(["npm", "pack", MERMAID], cwd=place, check=True, capture_output=True, text=True)
        subprocess.run(["tar", "xzf", packed.stdout.split()[-1]], cwd=place, check=True)
        for path, source in missing.items():
            path.write_text(draw(source, Path(place)) + "\n")
            print(path)


main()
