"""Every drawing is fresh, carries all it needs, and says in words what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tools import diagrams
from tools.diagrams import BadDiagram

ROOT = Path(__file__).resolve().parent.parent
KEYS = diagrams.keys()

GOOD = '''
"""A box calls Redis."""
from diagrams.onprem.inmemory import Redis
from tools.diagrams import box, canvas, cluster, edge, icon
with canvas("Two"):
    with cluster("a frame"):
        caller = box("Caller", "a note")
    caller >> edge("GET") >> icon(Redis, "Redis") >> icon(Redis, "Replica")
'''


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources and drawings of this test alone, with one good source."""
    monkeypatch.setattr(diagrams, "SOURCES", tmp_path / "src")
    monkeypatch.setattr(diagrams, "FOLDER", tmp_path / "svg")
    (tmp_path / "src" / "a").mkdir(parents=True)
    (tmp_path / "src" / "a" / "b.py").write_text(GOOD)
    return tmp_path


def committed(key: str) -> str:
    return (diagrams.FOLDER / f"{key}.svg").read_text("utf-8")


@pytest.fixture(scope="module")
def checked() -> str:
    """What `--check` says in a fresh process whose hashes are seeded otherwise."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tools.diagrams", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("key", KEYS)
def test_a_committed_drawing_is_fresh(key: str, checked: str) -> None:
    """A committed SVG is the same bytes as what its source draws now, in another process."""
    assert f"{key}: fresh" in checked


def test_every_drawing_has_a_source() -> None:
    """No drawing is left behind by a source that went."""
    found = {
        path.relative_to(diagrams.FOLDER).with_suffix("").as_posix() for path in diagrams.FOLDER.rglob("*")
    }
    categories = {key.rpartition("/")[0] for key in KEYS}
    assert found - categories == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_a_drawing_can_be_shown_anywhere(key: str) -> None:
    """A drawing is at most as wide as a page, has readable text, and refers to nothing outside itself."""
    assert diagrams.problems(committed(key)) == []


@pytest.mark.parametrize("key", KEYS)
def test_a_drawing_says_in_words_what_it_shows(key: str) -> None:
    """A drawing is an image with a title, and its description is the docstring of its source."""
    root = ET.fromstring(committed(key))
    names = {"svg": "http://www.w3.org/2000/svg"}
    assert root.get("role") == "img"
    assert root.findtext("svg:title", "", names).strip()
    description = root.findtext("svg:desc", "", names)
    assert description == diagrams.alt_of(key)
    assert len(description.split()) >= 20, "too short to stand for a drawing"


@pytest.mark.parametrize("key", KEYS)
def test_a_drawing_scales(key: str) -> None:
    """A drawing has a natural size and a view box of the same size, so that it shrinks without being cut."""
    root = ET.fromstring(committed(key))
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"


def test_an_icon_is_embedded_once(sources: Path) -> None:
    """An icon that is drawn twice is carried once, as data."""
    svg = diagrams.draw("a/b")
    assert svg.count("data:image/png;base64,") == 1
    assert svg.count('<use href="#icon1"') == 2


def test_a_changed_label_is_noticed(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--check` fails on one changed letter of a source, writes nothing, and passes once it is drawn."""
    source, drawing = sources / "src" / "a" / "b.py", sources / "svg" / "a" / "b.svg"
    assert diagrams.main([]) == 0
    before = drawing.read_bytes()
    assert diagrams.main(["--check"]) == 0
    source.write_text(GOOD.replace('"GET"', '"SET"'))
    assert diagrams.main(["--check", "a/b"]) == 1
    assert "a/b: stale" in capsys.readouterr().out
    assert drawing.read_bytes() == before
    assert diagrams.main(["a/b"]) == 0
    assert diagrams.main(["--check"]) == 0


def test_diagrams_alone_is_rejected(sources: Path) -> None:
    """The naive variant, `diagrams` as it is, draws other bytes each time and names paths of the machine."""
    naive = GOOD.replace('"""A box calls Redis."""', "").replace(
        "from tools.diagrams import box, canvas, cluster, edge, icon",
        "from diagrams import Cluster as cluster, Diagram, Edge as edge, Node as box\n"
        "import graphviz.backend.dot_command, pathlib, sysconfig\n"
        "scripts = pathlib.Path(sysconfig.get_path('scripts'))\n"
        "graphviz.backend.dot_command.DOT_BINARY = scripts / 'graphviz-pure'\n"
        "canvas = lambda name: Diagram(name, filename='out', outformat='svg', show=False)\n"
        "icon = lambda kind, label: kind(label)",
    )
    naive = naive.replace('"Caller", "a note"', '"Caller"').replace('edge("GET")', 'edge(label="GET")')
    drawn = []
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", naive], cwd=sources, check=True, capture_output=True, timeout=60
        )
        drawn.append((sources / "out.svg").read_text())
    assert drawn[0] != drawn[1]
    assert any("refers to something outside itself" in problem for problem in diagrams.problems(drawn[0]))
    assert any("path of this machine" in problem for problem in diagrams.problems(drawn[0]))
    assert diagrams.draw("a/b") == diagrams.draw("a/b")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"""A box calls Redis."""', "", "docstring"),
        ('"GET"', '"' + "a long label " * 18 + '"', "px wide"),
        ('"GET"', '"GET \N{RIGHTWARDS ARROW}"', "labels are ASCII"),
        ('edge("GET")', 'edge("GET", fontsize="9")', "smaller than 13 px"),
        ('"Caller", "a note"', '"Caller", "a note", fixedsize="true", width=".2", height=".2"', "too small"),
        ("with canvas", 'with canvas("One"):\n    box("x")\nwith canvas', "not on 2"),
        ("with canvas", 'box("x")\nwith canvas', "inside `with canvas"),
    ],
)
def test_a_drawing_that_a_page_cannot_show_is_refused(
    sources: Path, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source without words, too wide, with small or foreign text, or of two drawings, is one sentence."""
    assert old in GOOD
    (sources / "src" / "a" / "b.py").write_text(GOOD.replace(old, new))
    assert diagrams.main([]) == 1
    complaint = capsys.readouterr().err
    assert message in complaint
    assert "Traceback" not in complaint
    assert not (sources / "svg").exists()


def test_a_wide_drawing_turns(sources: Path) -> None:
    """A drawing too wide from left to right is drawn from top to bottom, unless it says which."""
    chain = ' >> edge("a longer label") >> '.join(f'box("step {number}", "does it")' for number in range(7))
    text = (
        f'"""A chain."""\nfrom tools.diagrams import box, canvas, edge\nwith canvas("Chain"):\n    {chain}\n'
    )
    source = sources / "src" / "a" / "b.py"
    source.write_text(text)
    width, height = re.findall(r'(?:width|height)="([\d.]+)"', diagrams.draw("a/b"))[:2]
    assert float(width) < float(height)
    source.write_text(text.replace('"Chain"', '"Chain", direction="LR"'))
    with pytest.raises(BadDiagram, match="px wide"):
        diagrams.draw("a/b")


def test_an_unknown_key_is_one_plain_sentence(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key without a source ends in one sentence."""
    assert diagrams.main(["no/such"]) == 1
    assert capsys.readouterr().err == "There is no diagrams_src/no/such.py.\n"
