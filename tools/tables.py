"""Results as HTML and SVG: the fault table, the cost table and chart, the line that says when it was checked.

Each function takes the documents that `tools.results.read` returns and gives one block of HTML, which may
stand in Markdown. The SVG has no size of its own in letters: bars are percentages, text keeps its size, and
every colour is `currentColor` or a class of the site, so that it reads on a phone and on a dark page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = [
    "checked",
    "cost_chart",
    "cost_table",
    "fault_table",
    "number",
    "prose",
    "question_chart",
    "questions",
    "totals",
]

Document = Mapping[str, Any]

# How `versions` names things, and how a reader does.
_NAMES = {"python": "Python", "valkey": "Valkey", "redis": "Redis", "opentelemetry-api": "OpenTelemetry"}


def number(value: float) -> str:
    """Return at least three significant figures, thousands apart: 0.0123, 1.23, 12.3, 1,234."""
    if value == 0:
        return "0"
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    decimals = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{decimals}f}" if abs(value) >= 0.1 else f"{value:.3g}"


def prose(text: str) -> str:
    """Return plain text as HTML; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def fault_table(document: Document) -> str:
    """Return what was injected, what was lost, and what held, one row per fault."""
    rows = document["rows"]
    naive = any(row["naive"] for row in rows)
    head = ["Fault", "Injected", "Lost", "Twice", "Unsure", "What held"] + ["Without the pattern"] * naive
    body = []
    for row in rows:
        held = f'{prose(row["held"])} <span class="bound">Bound: {prose(row["bound"])}</span>'
        cells = [
            f"<td>{prose(row['fault'])}</td>",
            _count("Injected", row["injected"]),
            _count("Lost", row["lost"], bad=True),
            _count("Twice", row["duplicated"], bad=True),
            _count("Unsure", row["unsure"]),
            _said("What held", held),
        ]
        if naive:
            cells.append(_said("Without the pattern", prose(row["naive"] or "not run")))
        # The spaces keep words apart in the search index, which leaves out the tags.
        body.append(f"<tr>{' '.join(cells)}</tr>")
    seconds = sum(row["seconds"] for row in rows)
    total = sum(row["injected"] for row in rows)
    note = f"{total:,} faults injected in {number(seconds)} s. {_made(document)}"
    return _table("faults", head, body, note, numeric=(1, 2, 3, 4))


def cost_table(document: Document) -> str:
    """Return what each case costs, and its ratio to the baseline of the same run."""
    body = []
    for row in document["rows"]:
        kind = "ours" if row["ours"] else "baseline" if row["baseline"] else "other"
        note = f' <span class="bound">{prose(row["note"])}</span>' if row["note"] else ""
        body.append(
            f'<tr class="{kind}"><td>{prose(row["case"])}{note}</td> '
            f'<td class="n">{number(row["value"])} {escape(row["unit"])}</td> '
            f'<td class="n">{_ratio(row)}</td> <td class="n">{row["n"]:,}</td></tr>'
        )
    head = ["Case", "Measured", "Ratio", "N"]
    note = f"Ratios are to the baseline of the same run. {_made(document)}"
    return _table("cost", head, body, note, numeric=(1, 2, 3))


def cost_chart(document: Document) -> str:
    """Return one bar chart per unit, as inline SVG; a bar is as long as its value."""
    by_unit: dict[str, list[Mapping[str, Any]]] = {}
    for row in document["rows"]:
        by_unit.setdefault(row["unit"], []).append(row)
    charts = "".join(_chart(unit, rows) for unit, rows in by_unit.items())
    note = f"Each bar is as long as its value; the ratio is to the baseline. {_made(document)}"
    return f'<figure class="chart">{charts}<figcaption>{note}</figcaption></figure>'


def questions(document: Document) -> list[str]:
    """Return what a page across patterns asks, in order: what stands before the colon of its cases."""
    return list(dict.fromkeys(row["case"].partition(": ")[0] for row in document["rows"]))


def question_chart(document: Document, question: str) -> str:
    """Return the bar chart of one question of a page across patterns, as inline SVG.

    When and on what all of them were measured, and their notes, are said once, in the page's table.

    Raises:
        ValueError: nobody has measured that, or its cases differ in their units.
    """
    asked = [row for row in document["rows"] if row["case"].startswith(f"{question}: ")]
    if not asked:
        raise ValueError(f"no case begins with {question!r}; measured: {', '.join(questions(document))}")
    units = sorted({row["unit"] for row in asked})
    if len(units) > 1:
        raise ValueError(f"{question!r} is measured in {' and '.join(units)}: one chart has one unit")
    rows = [{**row, "case": row["case"].removeprefix(f"{question}: ")} for row in asked]
    counts = sorted({row["n"] for row in rows})
    many = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    base = "".join(row["case"] for row in rows if row["baseline"])
    note = f"{escape(question[:1].upper() + question[1:])}. N = {many} each"
    note += f"; ratios are to {escape(base)}." if base else "."
    return f'<figure class="chart">{_chart(units[0], rows)}<figcaption>{note}</figcaption></figure>'


def checked(examples: Document, faults: Document | None) -> str:
    """Return the line under a page's title: when, with what, and how much of the page was run."""
    documents = [document for document in (examples, faults) if document]
    versions: dict[str, str] = {}
    for document in documents:
        versions |= document["versions"]
    parts = [
        f"Checked on <time>{min(document['date'] for document in documents)}</time>",
        ", ".join(f"{_NAMES.get(name, name)} {version}" for name, version in versions.items()),
        _plural(examples["executed"], "example") + " executed",
    ]
    if faults:
        parts.append(_plural(len(faults["rows"]), "kind") + " of fault held")
    return f'<p class="checked">{" · ".join(parts)}</p>'


def totals(documents: Iterable[Sequence[Document | None]]) -> dict[str, int]:
    """Return what the home page counts, over each pattern's (examples, faults)."""
    counts = dict.fromkeys(("executed", "kinds", "injected", "lost", "duplicated", "unsure"), 0)
    for examples, faults in documents:
        counts["executed"] += examples["executed"] if examples else 0
        for row in faults["rows"] if faults else ():
            counts["kinds"] += 1
            for name in ("injected", "lost", "duplicated", "unsure"):
                counts[name] += row[name]
    return counts


def _chart(unit: str, rows: Sequence[Mapping[str, Any]]) -> str:
    top = max(row["value"] for row in rows) or 1.0
    step, bar = 46, 14
    marks = []
    for at, row in enumerate(rows):
        kind = "ours" if row["ours"] else "baseline" if row["baseline"] else "other"
        width = max(100 * row["value"] / top, 0.3)
        y = at * step
        label = escape(row["case"].replace("`", ""))
        value = f"{number(row['value'])} {escape(unit)}"
        if not row["baseline"]:
            value += f" · {_ratio(row)}"
        marks.append(
            f'<text x="0" y="{y + 15}">{label}</text>'
            f'<text x="100%" y="{y + 15}" text-anchor="end" class="value">{value}</text>'
            f'<rect x="0" y="{y + 22}" width="100%" height="{bar}" rx="2" class="track"></rect>'
            f'<rect x="0" y="{y + 22}" width="{width:.2f}%" height="{bar}" rx="2" class="{kind}"></rect>'
        )
    said = "; ".join(f"{row['case'].replace('`', '')} {number(row['value'])} {unit}" for row in rows)
    return (
        f'<svg role="img" aria-label="{escape(said)}" width="100%" height="{len(rows) * step}" '
        f'fill="currentColor" class="bars">{"".join(marks)}</svg>'
    )


def _table(kind: str, head: Sequence[str], body: Sequence[str], note: str, numeric: Sequence[int]) -> str:
    cells = " ".join(
        f'<th scope="col" class="n">{name}</th>' if at in numeric else f'<th scope="col">{name}</th>'
        for at, name in enumerate(head)
    )
    return (
        f'<div class="results {kind}"><table class="plain"><thead><tr>{cells}</tr></thead> '
        f'<tbody>{" ".join(body)}</tbody></table><p class="made">{note}</p></div>'
    )


def _count(label: str, value: int, *, bad: bool = False) -> str:
    # On a phone the head of the table is gone, and each cell says by itself what it is.
    return f'<td class="n{" bad" if bad and value else ""}" data-label="{label}">{value:,}</td>'


def _said(label: str, text: str) -> str:
    return f'<td class="said" data-label="{label}">{text}</td>'


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{number(row['ratio'])}×"


def _made(document: Document) -> str:
    versions = ", ".join(f"{_NAMES.get(name, name)} {text}" for name, text in document["versions"].items())
    seed = "" if document["seed"] is None else f", seed {document['seed']}"
    commit, where = escape(document["commit"]), escape(document["machine"])
    return f"Measured on {document['date']} at commit <code>{commit}</code>{seed}; {versions}; {where}."


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
