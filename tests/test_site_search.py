"""Proof of tools/site_search.py; that readers find is proved in a browser, in test_site_browser.py."""

from __future__ import annotations

import json
from pathlib import Path

from tools import catalogue, site_search

ROOT = Path(__file__).resolve().parent.parent


def test_what_a_page_promises_is_a_field_of_its_entry_alone(tmp_path: Path) -> None:
    """Names and symptoms are in the entry of the page, and in none of its sections or of other pages."""
    known = catalogue.load(ROOT)
    breaker = known.patterns["resiliency/circuit_breaker"]
    locations = ["resiliency/circuit_breaker/", "resiliency/circuit_breaker/#tuning", "glossary/"]
    index = {
        "config": {"fields": {"tags": {"boost": 2.0}}},
        "docs": [{"location": location, "tags": ["latency"]} for location in locations],
    }
    path = tmp_path / "index.json"
    path.write_text(json.dumps(index))
    site_search.promise(path, known)
    after = json.loads(path.read_text("utf-8"))
    assert after["docs"][0]["tags"] == [*breaker.aka, *breaker.symptoms]
    assert [entry.get("tags") for entry in after["docs"][1:]] == [None, None]
    assert after["config"]["fields"]["tags"]["boost"] == site_search.BOOST > 4
