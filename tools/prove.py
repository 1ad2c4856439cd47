"""The whole proof, or the part of it that needs a minute: `python -m tools.prove [quick]`.

Runs every test, every example of the pages and docstrings and every notebook in one pytest run with warnings
as errors, on as many workers as there are cores, and ends with a line that says what was proved and, if
anything was skipped, what was not. Results go to a temporary folder: the committed ones are only read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

__all__ = ["Report", "command", "main"]

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("tests", "docs", "README.md", "patterns", "notebooks")
NOT_QUICK = "not slow and not fault and not browser and not containers"
# What starts servers, or builds the site, is not quick however it is marked.
SERVERS = {"server", "fresh_server", "cluster", "spawn", "postgres"}
NOT_QUICK_FILES = (
    "tests/test_embedded.py",
    "tests/test_faults_harness.py",
    "tests/test_faults_known_bad.py",
    "tests/test_site.py",
    "tests/test_site_browser.py",
)
LEAST_COVERAGE = 95  # per cent of lines and branches of patterns/


class Report:
    """What a run says about itself, read from its files.

    Args:
        folder: where the run wrote `junit.xml`, `coverage.json` and its results.
    """

    def __init__(self, folder: Path) -> None:
        self.passed: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        for case in ElementTree.parse(folder / "junit.xml").iter("testcase"):  # noqa: S314 - our own file
            if (skip := case.find("skipped")) is not None:
                self.skipped[skip.get("message") or "no reason given"] += 1
            elif case.find("failure") is None and case.find("error") is None:
                self.passed[_kind(case.get("file") or "")] += 1
        self.injected = self.lost = 0
        for path in folder.glob("results/faults/**/*.json"):
            for row in json.loads(path.read_text("utf-8"))["rows"]:
                self.injected += row["injected"]
                self.lost += row["lost"]
        self.covered: float | None = None
        if (coverage := folder / "coverage.json").exists():
            self.covered = json.loads(coverage.read_text("utf-8"))["totals"]["percent_covered"]

    def lines(self, seconds: float) -> list[str]:
        """Return what was proved, and what was not for want of something."""
        parts = [f"{self.passed[kind]:,} {kind}" for kind in ("tests", "examples", "notebook cells")]
        if self.injected:
            parts.append(f"{self.injected:,} faults injected with {self.lost:,} acknowledged writes lost")
        if self.covered is not None:
            parts.append(f"{self.covered:.1f} % of patterns/ covered, branches included")
        lines = [f"Proved in {seconds:.0f} s: {', '.join(parts)}."]
        for reason, count in self.skipped.most_common():
            lines.append(f"Not proved here: {count} skipped, because {reason}")
        return lines


def command(folder: Path, *, quick: bool) -> list[str]:
    """Return the pytest command of a run that reports to `folder`."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    places = [place for place in PLACES if (ROOT / place).exists()]
    arguments = ["-q", "-W", "error", "-n", str(min(cores, 4)), "--dist", "loadfile"]
    arguments += [f"--junitxml={folder / 'junit.xml'}", "-o", "junit_family=xunit1"]
    if quick:
        arguments += ["-m", NOT_QUICK, "-p", "tools.prove"]
        arguments += [f"--ignore={file}" for file in NOT_QUICK_FILES]
        places = [place for place in places if place != "notebooks"]
    else:
        arguments += ["--nbval", "--cov=patterns", "--cov-branch", f"--cov-fail-under={LEAST_COVERAGE}"]
        arguments += ["--cov-report=term", f"--cov-report=json:{folder / 'coverage.json'}"]
    return [sys.executable, "-m", "pytest", *arguments, *places]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, in a quick run (which loads this module as a plug-in), every test that wants a server."""
    with_server = [item for item in items if _wants_a_server(item)]
    if with_server:
        config.hook.pytest_deselected(items=with_server)
        items[:] = [item for item in items if item not in with_server]


def _wants_a_server(item: pytest.Item) -> bool:
    parameters = getattr(getattr(item, "callspec", None), "params", {})  # of `database`, on two engines
    return bool(SERVERS & {*getattr(item, "fixturenames", ()), parameters.get("database")})


def main(arguments: Sequence[str]) -> int:
    """Run the proof; the exit code is that of pytest."""
    if arguments not in ([], ["quick"]):
        print("usage: python -m tools.prove [quick]", file=sys.stderr)
        return 2
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="proof-") as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RESULTS_DIR": str(folder / "results"),
            "COVERAGE_FILE": str(folder / "coverage"),
        }
        run = subprocess.run(
            command(folder, quick=arguments == ["quick"]), cwd=ROOT, env=environment, check=False
        )
        if run.returncode == 0:
            print("\n".join(Report(folder).lines(time.monotonic() - started)))
    return run.returncode


def _kind(file: str) -> str:
    if file.endswith(".ipynb"):
        return "notebook cells"
    return "examples" if file == "README.md" or file.startswith(("docs/", "patterns/")) else "tests"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
