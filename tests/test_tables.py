"""Tables and charts say exactly what the results say, in HTML that is sound."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from tools import tables

BASE: dict[str, Any] = {
    "pattern": "cache/thing",
    "commit": "abc1234",
    "date": "2026-11-24",
    "seed": 7,
    "versions": {"python": "3.11.7", "redis-py": "8.1.0"},
    "machine": "2 cores, x86_64, Linux",
}


def faults(**changes: Any) -> dict[str, Any]:
    row = {
        "fault": "process killed <early>",
        "injected": 1200,
        "lost": 0,
        "duplicated": 0,
        "unsure": 3,
        "seconds": 4.2,
        "held": "`lease` ends",
        "bound": "at most 2",
        "naive": None,
    }
    return {**BASE, "rows": [{**row, **changes}]}


def costs(*values: tuple[str, float, float], unit: str = "µs") -> dict[str, Any]:
    rows = [
        {
            "case": case,
            "ours": case == "ours",
            "baseline": case == "without",
            "value": value,
            "unit": unit,
            "ratio": ratio,
            "n": 1000,
            "note": None,
        }
        for case, value, ratio in values
    ]
    return {**BASE, "rows": rows}


def cells(html: str) -> list[str]:
    return [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", html)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3, "3"),
        (1234567, "1,234,567"),
        (1234.56, "1,235"),
        (12.345, "12.3"),
        (1.2345, "1.23"),
        (0.12345, "0.123"),
        (0.00012345, "0.000123"),
    ],
)
def test_a_number_keeps_three_significant_figures(value: float, text: str) -> None:
    """A reader sees neither noise digits nor a rounded-away figure."""
    assert tables.number(value) == text


def test_the_fault_table_states_every_count() -> None:
    """What was injected, lost, doubled and left unsure stand in the row, escaped."""
    html = tables.fault_table(faults())
    assert cells(html) == [
        "process killed &lt;early&gt;",
        "1,200",
        "0",
        "0",
        "3",
        "lease ends Bound: at most 2",
    ]
    assert "<code>lease</code>" in html
    assert "1,200 faults injected in 4.20 s" in html
    ElementTree.fromstring(html)


def test_a_loss_cannot_be_overlooked() -> None:
    """A cell of lost or doubled effects that is not zero is marked; one that is zero is not."""
    assert 'class="n bad"' not in tables.fault_table(faults())
    assert tables.fault_table(faults(lost=1)).count('class="n bad"') == 1
    assert tables.fault_table(faults(lost=1, duplicated=2)).count('class="n bad"') == 2


def test_the_naive_variant_has_a_column_only_where_it_was_run() -> None:
    """No empty column claims a comparison that was not made."""
    assert "Without the pattern" not in tables.fault_table(faults())
    html = tables.fault_table(faults(naive="43 loads"))
    assert "Without the pattern" in html
    assert cells(html)[-1] == "43 loads"


def test_the_cost_table_states_value_unit_ratio_and_n() -> None:
    """Each case has what was measured and its ratio to the baseline of the same run."""
    html = tables.cost_table(costs(("without", 0.06, 1.0), ("ours", 1.5, 25.0)))
    assert cells(html) == ["without", "0.06 µs", "1×", "1,000", "ours", "1.50 µs", "25×", "1,000"]
    assert "commit <code>abc1234</code>, seed 7; Python 3.11.7, redis-py 8.1.0; 2 cores" in html
    ElementTree.fromstring(html)


def test_a_bar_is_as_long_as_its_value() -> None:
    """The longest bar fills the width, and the others are in proportion to it."""
    html = tables.cost_chart(costs(("without", 1.0, 1.0), ("ours", 2.5, 2.5), ("other", 10.0, 10.0)))
    bars = re.findall(r'width="([\d.]+)%" height="\d+" rx="2" class="(\w+)"', html)
    shown = {kind: float(width) for width, kind in bars if kind != "track"}
    assert shown == {"baseline": 10.0, "ours": 25.0, "other": 100.0}


def test_each_unit_has_a_chart_of_its_own() -> None:
    """Microseconds are never drawn beside requests per second."""
    both = costs(("without", 1.0, 1.0))
    both["rows"] += costs(("ours", 900.0, 1.0), unit="req/s")["rows"]
    html = tables.cost_chart(both)
    assert html.count("<svg") == 2
    assert len(re.findall(r'width="100.00%" height', html)) == 2


def test_a_chart_is_readable_without_seeing_it_and_on_any_background() -> None:
    """It says its values in words, sets no colour of its own, and is sound XML."""
    html = tables.cost_chart(costs(("without", 1.0, 1.0), ("`ours` & co", 2.0, 2.0)))
    svg = ElementTree.fromstring(html).find("svg")
    assert svg is not None
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "without 1 µs; ours & co 2 µs"
    assert svg.get("fill") == "currentColor"
    assert not re.search(r"#[0-9a-f]{3,6}|rgb", html)


def answers() -> dict[str, Any]:
    """Return what a page across patterns asked: one question, and one that begins with the same words."""
    waits = costs(("waits: without", 4.0, 1.0), ("waits: ours", 1.0, 0.25), unit="ms")
    waits["rows"][0]["baseline"] = True
    waits["rows"][1] |= {"ours": True, "n": 2000, "note": "in the best round"}
    waits["rows"] += costs(("waits, at night: ours", 9.0, 1.0), unit="s")["rows"]
    return waits


def test_a_page_across_patterns_has_a_chart_for_each_question() -> None:
    """A question's chart holds its cases and no others, without repeating the question, and says how many."""
    assert tables.questions(answers()) == ["waits", "waits, at night"]
    html = tables.question_chart(answers(), "waits")
    svg = ElementTree.fromstring(html).find("svg")
    assert svg is not None
    assert svg.get("aria-label") == "without 4 ms; ours 1 ms"
    bars = re.findall(r'width="([\d.]+)%" height="\d+" rx="2" class="(\w+)"', html)
    assert [bar for bar in bars if bar[1] != "track"] == [("100.00", "baseline"), ("25.00", "ours")]
    assert ">Waits. N = 1,000 to 2,000 each; ratios are to without.<" in html


def test_a_question_that_nobody_measured_is_told() -> None:
    """A chart's mistyped question is refused with those that there are, and so is one of two units."""
    with pytest.raises(ValueError, match="'wait'; measured: waits, waits, at night"):
        tables.question_chart(answers(), "wait")
    both = answers()
    both["rows"][1]["unit"] = "s"
    with pytest.raises(ValueError, match="'waits' is measured in ms and s"):
        tables.question_chart(both, "waits")


def test_the_checked_line_takes_the_older_date_and_every_version() -> None:
    """A page is as old as the oldest of the results that it stands on."""
    examples = {**BASE, "executed": 12, "date": "2026-11-25", "rows": []}
    line = tables.checked(examples, {**faults(), "versions": {"valkey": "9.1.2"}})
    text = re.sub(r"<[^>]+>", "", line)
    assert text == (
        "Checked on 2026-11-24 · Python 3.11.7, redis-py 8.1.0, Valkey 9.1.2 · "
        "12 examples executed · 1 kind of fault held"
    )
    assert "fault" not in tables.checked({**examples, "executed": 1}, None)


def test_totals_are_sums_over_all_patterns() -> None:
    """The home page counts what the results hold, and a pattern without results counts nothing."""
    examples = {**BASE, "executed": 12, "rows": []}
    found = tables.totals([(examples, faults(lost=2)), (examples, None), (None, faults(injected=5))])
    assert found == {
        "executed": 24,
        "kinds": 2,
        "injected": 1205,
        "lost": 2,
        "duplicated": 0,
        "unsure": 6,
    }
