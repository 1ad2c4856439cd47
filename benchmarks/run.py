"""Run benchmarks and write their results: `python -m benchmarks.run [category/name ...]`.

A benchmark is a module `benchmarks/<category>/<name>.py`, or `benchmarks/<name>.py` where a page across
patterns is `docs/<name>.md`, with

- `measure() -> list[Row]`: the rows, each compared with the one baseline of its unit; for a page across
  patterns with that of its question, which stands before the colon (`<!-- chart: question -->`);
- `bounds(rows) -> list[str]`: a sentence for each promise that the rows break (empty: all held).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.paired import SEED
from tools import results

if TYPE_CHECKING:
    from benchmarks.paired import Row

ROOT = Path(__file__).resolve().parent.parent


def keys() -> list[str]:
    """Return the keys of all benchmarks: those of patterns, then those of pages across patterns."""
    found = sorted((ROOT / "benchmarks").glob("*/*.py"))
    shared = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    return [
        *(f"{path.parent.name}/{path.stem}" for path in found if path.stem != "__init__"),
        *(name for name in shared if (ROOT / "docs" / f"{name}.md").is_file()),
    ]


def main(wanted: list[str]) -> int:
    """Measure `wanted`, or everything; return 1 when a promise is broken."""
    unknown = sorted(set(wanted) - set(keys()))
    if unknown:
        print(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(keys())}")
        return 2
    broken = 0
    for key in wanted or keys():
        print(f"{key}: measuring ...", flush=True)
        module = importlib.import_module(f"benchmarks.{key.replace('/', '.')}")
        rows: list[Row] = module.measure()
        path = results.write("benchmarks", key, rows, seed=SEED)
        for row in rows:
            mark = "*" if row["ours"] else " "
            print(f"  {mark} {row['case']:<44} {row['value']:>12,.4g} {row['unit']:<6} x {row['ratio']:.2f}")
        for sentence in module.bounds(rows):
            broken += 1
            print(f"  BROKEN: {sentence}")
        print(f"  written to {path}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
