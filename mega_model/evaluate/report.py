"""Writes reports: tables on the screen, a JSON file, and a self-contained HTML page."""

from __future__ import annotations

import base64
import io
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as ScreenTable

from mega_model.core.files import make_folder

Rows = Mapping[str, Mapping[str, float | None]]
"""Row -> column -> value, or None."""

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ report.title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #2c3440; max-width: 70em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } caption { text-align: left; font-weight: 600; padding-bottom: .4em }
th, td { padding: .25em .9em; border-bottom: 1px solid #dde; text-align: right }
th:first-child { text-align: left } dt { font-weight: 600 } dd { margin: 0 0 .4em } img { max-width: 100% }
</style>
<h1>{{ report.title }}</h1>
<dl>{% for name, fact in report.facts.items() %}<dt>{{ name }}</dt><dd>{{ fact }}</dd>{% endfor %}</dl>
{% for caption, rows in report.tables.items() %}
<table><caption>{{ caption }}</caption>
<tr><th></th>{% for column in columns(rows) %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row, values in rows.items() %}
<tr><th>{{ row }}</th>{% for column in columns(rows) %}<td>{{ number(values.get(column)) }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endfor %}
{% for caption, figure in report.figures.items() %}
<figure><img alt="{{ caption }}" src="{{ image(figure) }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
</html>
"""


@dataclass(frozen=True)
class Report:
    title: str
    facts: Mapping[str, str]
    """The conditions of the evaluation: model, set, protocol, ..."""
    tables: Mapping[str, Rows]
    """By caption, which names the unit."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """By caption."""


def publish(report: Report, folder: Path, name: str) -> None:
    """Print a report's tables, and write them to `name`.json and, with its figures, to `name`.html."""
    make_folder(folder)
    content = {"title": report.title, "facts": report.facts, "tables": report.tables}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{name}.html").write_text(page(report), encoding="utf-8")
    console = Console()
    console.print(f"[bold]{report.title}[/bold]")
    for key, value in report.facts.items():
        console.print(f"{key}: {value}", markup=False, highlight=False)
    for caption, rows in report.tables.items():
        table = ScreenTable("", title=caption, title_justify="left", box=SIMPLE_HEAD)
        for column in columns(rows):
            table.add_column("\n".join(textwrap.wrap(column, 12, break_long_words=False)), justify="right")
        for row, values in rows.items():
            table.add_row(row, *(number(values.get(c)) for c in columns(rows)))
        whole = Measurement.get(console, console.options.update(max_width=1000), table).maximum
        Console(width=max(console.width, whole)).print(table)  # a narrow screen would cut numbers
    console.print(f"report: {folder / name}.html", markup=False, highlight=False)


def page(report: Report) -> str:
    """The HTML page."""
    template = jinja2.Template(_PAGE, autoescape=True)
    return template.render(report=report, columns=columns, number=number, image=_image)


def columns(rows: Rows) -> list[str]:
    """The columns of all rows, in order of first appearance."""
    return list(dict.fromkeys(column for values in rows.values() for column in values))


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _image(figure: Figure) -> str:
    """A PNG in the form of an address."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
