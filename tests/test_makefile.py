"""The two commands on a fresh machine, and what they say when something is wrong with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tools import prove

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
INTERNAL = {"help", "venv", "venv-bench", "venv-bench-arq", "known"}

# Stands in for a Python: it tells a version, makes an environment out of itself, and "installs" from pip.
FAKE = """\
#!/bin/sh
echo "$0 $*" >>"$FAKE_LOG"
case "$1 $2" in
  "-c import sys"*) printf %s "${FAKE_VERSION:-3.12.1}" ;;
  "-c import venv"*) exit "${FAKE_VENV:-0}" ;;
  "-c "*) ;;
  "-m venv")
    for folder; do :; done
    mkdir -p "$folder/bin"
    cp "$0" "$folder/bin/python" ;;
  "-m pip")
    echo "Collecting redis==8.1.0"
    echo "Installing collected packages: redis"
    if [ "${FAKE_PIP:-0}" != 0 ]; then echo "ERROR: no such host"; exit "$FAKE_PIP"; fi ;;
  *) echo "ran: $*" ;;
esac
"""


class Machine:
    """A checkout in a folder with a space in its name, and a Python that only pretends."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "a checkout"
        (self.tree / "tools").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", self.tree)
        shutil.copy(ROOT / "tools/venv.sh", self.tree / "tools")
        (self.tree / "requirements.txt").write_text("redis==8.1.0\n")
        (self.tree / "requirements-bench.txt").write_text("redis==8.1.0\n")
        (self.tree / "requirements-bench-arq.txt").write_text("arq==0.28.0\n")
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.log = folder / "log"
        self.python("python3")

    def python(self, name: str, text: str = FAKE) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run make from another folder."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MAKE", "MFLAGS")) and name not in {"PYTHON", "PATTERN", "PORT"}
        }
        self.log.write_text("")
        return subprocess.run(
            ["make", "-C", str(self.tree), "--no-print-directory", *arguments],
            env={
                **inherited,
                "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
                "FAKE_LOG": str(self.log),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )

    @property
    def installs(self) -> int:
        """How often pip was called in the last run."""
        return self.log.read_text().count("-m pip install")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def said(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what was written to standard error, but for make's own line about the failed recipe."""
    return [line for line in result.stderr.splitlines() if not line.startswith("make")]


def recipe(target: str) -> str:
    match = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert match, f"there is no target {target}"
    return match[1]


# What `make` alone says


def test_make_alone_prints_each_target_with_a_line(machine: Machine) -> None:
    """A newcomer sees every command and what it does, and nothing is run or installed."""
    result = machine.make()
    assert result.returncode == 0
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)
    assert phony is not None
    for target in set(phony[1].replace("\\", "").split()) - INTERNAL:
        (line,) = re.findall(rf"^  make {target}\b.*", result.stdout, re.MULTILINE)
        assert len(line.split()) > 4, f"{target} is not explained"
    assert machine.log.read_text() == ""
    assert not (machine.tree / ".venv").exists()


@pytest.mark.parametrize(
    "target",
    [
        *("site", "serve", "test", "quick", "bench", "faults", "examples", "diagrams", "notebooks"),
        *("new", "missing", "check", "clean"),
    ],
)
def test_promised_target_is_there(target: str) -> None:
    """Each command that the README and CONTRIBUTING speak of has a recipe."""
    assert recipe(target)


def test_makefile_needs_no_newer_make_than_macos_has() -> None:
    """Nothing of GNU make after 3.81 is used: no `!=`, `::=`, `$(file`, `.ONESHELL`, grouped targets."""
    assert not re.search(r"!=|::=|\$\(file |\.ONESHELL|&:|\$\(intcmp|\$\(let ", MAKEFILE)


# The environment


def test_environment_is_made_once_and_says_so(machine: Machine) -> None:
    """The first command installs, with a line of progress; the second finds everything in place."""
    first = machine.make("missing")
    assert first.returncode == 0, first.stderr
    assert "Making .venv with Python 3.12.1 ..." in first.stderr
    assert "1 of at most 1: redis==8.1.0" in first.stderr
    assert machine.installs == 1
    assert "ran: -m tools.missing" in first.stdout
    second = machine.make("missing")
    assert (second.returncode, machine.installs, said(second)) == (0, 0, [])


def test_packages_are_installed_by_hash(machine: Machine) -> None:
    """Pip is told to refuse whatever the list does not vouch for."""
    machine.make("missing")
    assert "-m pip install --require-hashes" in machine.log.read_text()


def test_environment_follows_the_content_of_the_list_not_its_date(machine: Machine) -> None:
    """A list that was only touched installs nothing; one that has changed installs again."""
    machine.make("missing")
    (machine.tree / "requirements.txt").touch()
    machine.make("missing")
    assert machine.installs == 0
    (machine.tree / "requirements.txt").write_text("redis==8.2.0\n")
    machine.make("missing")
    assert machine.installs == 1
    assert "-m venv" not in machine.log.read_text()


def test_other_python_makes_the_environment_anew(machine: Machine) -> None:
    """PYTHON with another version clears the old environment; without PYTHON the standing one is kept."""
    machine.make("missing")
    result = machine.make("missing", f"PYTHON={machine.python('python3.11')}", FAKE_VERSION="3.11.9")
    assert result.returncode == 0, result.stderr
    assert "-m venv --clear .venv" in machine.log.read_text()
    machine.make("missing", FAKE_VERSION="3.11.9")
    assert machine.installs == 0


def test_failed_installation_is_told_and_tried_again(machine: Machine) -> None:
    """Without a network: pip's last words and one sentence; nothing pretends to be installed."""
    result = machine.make("missing", FAKE_PIP="1")
    assert result.returncode != 0
    assert "ERROR: no such host" in result.stderr
    assert said(result)[-1].startswith("The packages of requirements.txt could not be installed")
    assert "ran:" not in result.stdout
    assert machine.make("missing").returncode == 0
    assert machine.installs == 1


def test_benchmarks_have_an_environment_of_their_own(machine: Machine) -> None:
    """The libraries that are only compared with never enter .venv."""
    result = machine.make("bench")
    assert result.returncode == 0, result.stderr
    assert "ran: -m benchmarks.run" in result.stdout
    assert (machine.tree / ".venv-bench").exists()
    assert not (machine.tree / ".venv").exists()


# What is wrong is said in one plain sentence


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("2.7.18", "is Python 2.7.18, which is too old"),
        ("3.6.15", "is Python 3.6.15, which is too old"),
        ("3.10.13", "is Python 3.10.13, which is too old"),
        ("3.15.0", "is Python 3.15.0, which is too new"),
        ("4.0.0", "is Python 4.0.0, which is too new"),
    ],
)
def test_wrong_python_is_refused(machine: Machine, version: str, sentence: str) -> None:
    """Too old or too new: which one was found, which ones are needed, and how to name another."""
    result = machine.make("site", FAKE_VERSION=version)
    assert result.returncode != 0
    (line,) = said(result)
    assert sentence in line
    assert "3.11, 3.12 or 3.13" in line
    assert "PYTHON=" in line
    assert not (machine.tree / ".venv").exists()


def test_untested_python_is_said_to_be_untested(machine: Machine) -> None:
    """Python 3.14 is allowed, and nobody is led to think that it was proved."""
    result = machine.make("missing", FAKE_VERSION="3.14.0")
    assert result.returncode == 0
    assert "on 3.14 it is not" in result.stderr


def test_missing_venv_module_is_named_with_its_cure(machine: Machine) -> None:
    """Debian's python3 without python3-venv: one sentence with the package to install."""
    result = machine.make("test", FAKE_VENV="1")
    assert result.returncode != 0
    (line,) = said(result)
    assert "venv module is missing" in line
    assert "apt install python3-venv" in line


def test_missing_python_is_told(machine: Machine) -> None:
    """No Python by that name: one sentence that says which to install."""
    result = machine.make("site", "PYTHON=no-such-python")
    assert result.returncode != 0
    (line,) = said(result)
    assert "There is no 'no-such-python' here" in line


def test_something_else_than_a_python_is_told(machine: Machine) -> None:
    """PYTHON that names another program is found out before anything is made with it."""
    result = machine.make(
        "site", f"PYTHON={machine.python('other', '#!/bin/sh' + chr(10) + 'exit 3' + chr(10))}"
    )
    assert result.returncode != 0
    (line,) = said(result)
    assert "does not run as a Python" in line


@pytest.mark.parametrize("target", ["bench", "faults", "examples", "diagrams", "notebooks"])
@pytest.mark.parametrize("pattern", ["no/such", "resiliency", "$(touch x)", "a b/c d", "';exit 0;'"])
def test_unknown_pattern_is_refused_before_anything_is_installed(
    machine: Machine, target: str, pattern: str
) -> None:
    """A mistyped key costs one sentence, not a minute, whatever characters are in it."""
    result = machine.make(target, PATTERN=pattern)
    assert result.returncode != 0
    (line,) = said(result)
    assert line.startswith(f"There is no pattern '{pattern}' here")
    assert machine.log.read_text() == ""
    assert not (machine.tree / "x").exists()


def test_known_pattern_is_handed_on(machine: Machine) -> None:
    """PATTERN reaches the command that was asked for, module or package."""
    (machine.tree / "patterns/demo/pod").mkdir(parents=True)
    (machine.tree / "patterns/demo/thing.py").touch()
    (machine.tree / "patterns/demo/pod/__init__.py").touch()
    assert "ran: -m benchmarks.run demo/thing" in machine.make("bench", "PATTERN=demo/thing").stdout
    assert "ran: -m tools.examples demo/pod" in machine.make("examples", "PATTERN=demo/pod").stdout
    faults = machine.make("faults", "PATTERN=demo/thing").stdout
    assert "-m pytest -q -s -W error -m fault tests/demo/test_thing.py" in faults


def test_page_across_patterns_is_measured_like_a_pattern(machine: Machine) -> None:
    """PATTERN may name a page one level up, such as docs/composing.md, and nothing that has no page."""
    (machine.tree / "docs").mkdir()
    (machine.tree / "docs/comparing.md").touch()
    assert "ran: -m benchmarks.run comparing\n" in machine.make("bench", "PATTERN=comparing").stdout
    assert "ran: -m tools.examples comparing\n" in machine.make("examples", "PATTERN=comparing").stdout
    assert "There is no pattern 'compared' here" in machine.make("bench", "PATTERN=compared").stderr


# What the commands run


def test_site_draws_before_it_builds(machine: Machine) -> None:
    """`make site` renders the diagrams and then builds."""
    ran = re.findall(r"ran: (.+)", machine.make("site").stdout)
    assert ran == ["-m tools.diagrams", "-m tools.site build"]


def test_test_and_quick_are_one_command_each(machine: Machine) -> None:
    """`make test` is the whole proof, `make quick` the part that takes a minute."""
    assert "ran: -m tools.prove\n" in machine.make("test").stdout
    assert "ran: -m tools.prove quick\n" in machine.make("quick").stdout


def test_faults_write_the_committed_results(machine: Machine) -> None:
    """Only `make faults` points the tests at the committed folder."""
    assert "RESULTS_DIR=results" in recipe("faults")
    assert MAKEFILE.count("RESULTS_DIR") == 1


def test_clean_removes_what_was_made_and_nothing_else(machine: Machine) -> None:
    """After `make clean` the tree is as it was cloned."""
    before = {path for path in machine.tree.rglob("*") if path.is_file()}
    machine.make("missing")
    for made in ("site/index.html", ".mypy_cache/x", "tools/__pycache__/x.pyc", ".coverage", ".cache/x"):
        (machine.tree / made).parent.mkdir(exist_ok=True)
        (machine.tree / made).touch()
    assert machine.make("clean").returncode == 0
    assert {path for path in machine.tree.rglob("*") if path.is_file()} == before


def test_clean_covers_what_git_ignores() -> None:
    """What the commands make and git ignores is what `make clean` removes."""
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()}
    kept = {"*.egg-info", "uv.lock", "node_modules", "__pycache__"}
    words = set(recipe("clean").split()) | {".coverage*"}
    assert ignored - kept <= words


# The proof's own report

JUNIT = """\
<testsuites><testsuite>
<testcase file="tests/test_a.py" name="a"/>
<testcase file=".venv/lib/hypothesis/stateful.py" name="a state machine"/>
<testcase file="tests/cache/test_b.py" name="b"/>
<testcase file="tests/test_a.py" name="c"><skipped message="no podman here">x</skipped></testcase>
<testcase file="docs/cache/b.md" name="line:3"/>
<testcase file="patterns/clock.py" name="line:1"/>
<testcase file="notebooks/cache/b.ipynb" name="Cell 0"/>
<testcase file="tests/test_a.py" name="d"><failure>no</failure></testcase>
</testsuite></testsuites>
"""


def test_proof_ends_with_what_was_proved_and_what_was_not(tmp_path: Path) -> None:
    """Tests, examples and notebook cells are counted apart, with faults, losses, coverage and each reason."""
    (tmp_path / "junit.xml").write_text(JUNIT)
    (tmp_path / "coverage.json").write_text(json.dumps({"totals": {"percent_covered": 97.25}}))
    folder = tmp_path / "results/faults/cache"
    folder.mkdir(parents=True)
    rows = [{"injected": 1000, "lost": 0}, {"injected": 50, "lost": 3}]
    (folder / "b.json").write_text(json.dumps({"rows": rows}))
    assert prove.Report(tmp_path).lines(61.4) == [
        "Proved in 61 s: 3 tests, 2 examples, 1 notebook cells, 1,050 faults injected with 3 acknowledged "
        "writes lost, 97.2 % of patterns/ covered, branches included.",
        "Not proved here: 1 skipped, because no podman here",
    ]


def test_whole_proof_makes_warnings_errors_and_holds_the_coverage(tmp_path: Path) -> None:
    """Tests, pages, README, docstrings and notebooks run in one strict run; quick leaves out what is slow."""
    whole, quick = (" ".join(prove.command(tmp_path, quick=each)) for each in (False, True))
    for run in (whole, quick):
        assert "-W error" in run
        assert "--dist loadfile" in run
        assert "tests docs README.md patterns" in run
    assert "--nbval " in whole
    assert "--cov-fail-under=95" in whole
    assert " -m not slow" not in whole
    assert "--ignore" not in whole
    assert all((ROOT / file).is_file() for file in prove.NOT_QUICK_FILES)
    assert "-m not slow and not fault and not browser and not containers" in quick


def test_quick_run_leaves_out_what_wants_a_server(tmp_path: Path) -> None:
    """A test that asks for a server, also through another fixture, is deselected and counted as such."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.fixture\n"
        "def server(): raise RuntimeError('started')\n"
        "@pytest.fixture\n"
        "def client(server): return server\n"
        "def test_a(server): ...\n"
        "def test_b(client): ...\n"
        "def test_c(tmp_path): ...\n"
        "@pytest.fixture(params=['sqlite', 'postgres'])\n"
        "def database(request): assert request.param == 'sqlite'\n"
        "def test_d(database): ...\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tools.prove", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 passed, 3 deselected" in done.stdout, done.stdout


def test_proof_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    """A word that is not `quick` runs nothing."""
    assert prove.main(["all"]) == 2
    assert "usage" in capsys.readouterr().err


def test_shell_script_is_plain_posix() -> None:
    """The script that runs before Python parses under the strictest shell at hand."""
    shell = shutil.which("dash") or "/bin/sh"
    done = subprocess.run(
        [shell, "-n", str(ROOT / "tools/venv.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    text = (ROOT / "tools/venv.sh").read_text()
    assert not re.search(r"\[\[|\blocal\b|<<<|\$'", text)
