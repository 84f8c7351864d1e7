"""Hooks of MkDocs (mkdocs.yml): links to files outside docs/, and diagrams.

The pages are also read on a code host, so they link to other files of the repository by relative paths. The site gets a
copy of each such file, as text, which browsers show. Likewise, a code host draws Mermaid's diagrams, and the site shows
the images that scripts/draw_diagrams.py made of them.
"""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

OUTWARD = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)\)")
"""A relative link that begins with ../"""
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DIAGRAMS = Path("images/diagrams")
log = logging.getLogger("mkdocs")


def outside(page: str, link: str, docs: Path) -> Path | None:
    """The path, from the repository's root, of the file outside docs/ that a page links to; None for one inside."""
    target = Path(os.path.normpath(docs / Path(page).parent / link))
    return None if target.is_relative_to(docs) else target.relative_to(docs.parent)


def copy_of(path: Path) -> str:
    return f"repository/{path}.txt".replace("/.", "/")  # MkDocs leaves out names that begin with a dot


def on_files(files: Files, config: Any) -> Files:
    docs = Path(config.docs_dir)
    for page in list(files.documentation_pages()):
        for link in OUTWARD.findall(page.content_string):
            path = outside(page.src_uri, link, docs)
            if path and (docs.parent / path).is_file() and not files.get_file_from_path(copy_of(path)):
                files.append(File.generated(config, copy_of(path), abs_src_path=str(docs.parent / path)))
    return files


def diagram_of(source: str) -> Path:
    """The image of a diagram, within docs/."""
    return DIAGRAMS / f"{hashlib.sha256(source.encode()).hexdigest()[:12]}.svg"


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """A link to a file that is missing stays as it is, and MkDocs warns of it."""
    docs, here = Path(config.docs_dir), Path(page.file.src_uri).parent

    def local(match: re.Match[str]) -> str:
        path = outside(page.file.src_uri, match[1], docs)
        if not path or not (docs.parent / path).is_file():
            return match[0]
        return f"]({os.path.relpath(copy_of(path), here)})"

    def image(match: re.Match[str]) -> str:
        path = diagram_of(match[1])
        if not (docs / path).is_file():
            log.warning(f"{page.file.src_uri}: a diagram is not drawn: run scripts/draw_diagrams.py")
        return f"![Diagram]({os.path.relpath(path, here)}){{.diagram}}"

    return DIAGRAM.sub(image, OUTWARD.sub(local, markdown))
