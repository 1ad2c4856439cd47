"""The repository checks itself: what is tracked, what is pinned, what is silenced and why."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LARGEST = 4_000_000
# Written with gaps, so that this file does not find itself.
HOSTS = ("pypi org", "pythonhosted org", "npmjs org", "npmjs com", "yarnpkg com", "crates io")
PLACES = ("work/", "root/.", "home/", "Users/", "opt/pypi")
FOREIGN = re.compile(
    "|".join(
        [re.escape(host.replace(" ", ".")) for host in HOSTS]
        + [rf"(?<![\w.<>-])/{re.escape(place)}" for place in PLACES]
    )
)
# Text of others, word for word.
VENDORED = ("docs/assets/vendor/", "LICENSE-TEXT")


def tracked() -> list[str]:
    """Return what git tracks and what it would, were everything added; in a tree without git, every file."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        unwanted = {".git", ".venv", ".venv-bench", ".venv-bench-arq", ".cache", "site", "node_modules"}
        listed = [
            path.relative_to(ROOT).as_posix()
            for path in ROOT.rglob("*")
            if not unwanted & set(path.relative_to(ROOT).parts) and "cache" not in path.as_posix()
        ]
    return sorted(name for name in listed if name and (ROOT / name).is_file())


FILES = tracked()


def text_of(name: str) -> str:
    """Return a file's text, or nothing for a binary one."""
    try:
        return (ROOT / name).read_text("utf-8")
    except UnicodeDecodeError:
        return ""


def own(*suffixes: str) -> list[str]:
    return [name for name in FILES if name.endswith(suffixes) and not name.startswith(VENDORED)]


# What is in the tree


def foreign_places(text: str) -> list[str]:
    """Return the registry hosts and machine paths that a text names."""
    return FOREIGN.findall(text)


def test_no_file_names_a_registry_or_a_machine() -> None:
    """Where packages come from is the reader's setting, and no path of the author's machine is in a file."""
    found = {
        name: places
        for name in FILES
        if not name.startswith(VENDORED)
        if (places := foreign_places(text_of(name)))
    }
    assert found == {}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("around", ["https://{}/simple", "https://files.{}/x.whl", "index = '{}'"])
def test_registry_is_found(host: str, around: str) -> None:
    """The check above finds a host wherever it stands."""
    assert foreign_places(around.format(host.replace(" ", ".")))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("around", ["/{}x", 'File "/{}x", line 1', "path=/{}x"])
def test_machine_path_is_found(place: str, around: str) -> None:
    """The check above finds a path that begins at the root, in quotes or out of them."""
    assert foreign_places(around.format(place))


def test_other_paths_are_no_machine_paths() -> None:
    """A link or a relative path that only looks alike is left alone."""
    assert foreign_places("https://example.org/home/ and docs/work/plan.md") == []


def test_no_file_is_large() -> None:
    """A clone stays quick: nothing above 4 MB is tracked."""
    assert {name: size for name in FILES if (size := (ROOT / name).stat().st_size) > LARGEST} == {}


def test_data_files_parse() -> None:
    """Every JSON, YAML, TOML and notebook file can be read, with no key given twice in JSON."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), f"{name}: a key is given twice in {keys}"
        return dict(pairs)

    for name in own(".json", ".ipynb"):
        json.loads(text_of(name), object_pairs_hook=once)
    for name in own(".toml"):
        tomllib.loads(text_of(name))
    for name in own(".yml", ".yaml", ".cff"):
        if name != "mkdocs.yml":  # it has tags of its own, and the strict build reads it
            list(yaml.safe_load_all(text_of(name)))


def test_text_files_are_tidy() -> None:
    """Text ends in one newline, has no trailing blanks, no tabs in Python, no carriage returns."""
    untidy = []
    for name in own(".py", ".md", ".toml", ".yml", ".yaml", ".sh", ".txt", ".cff", ".css", "Makefile"):
        text = text_of(name)
        if text and (not text.endswith("\n") or text.endswith("\n\n")):
            untidy.append(f"{name}: ends in something else than one newline")
        for number, line in enumerate(text.split("\n"), 1):
            if line != line.rstrip() or (name.endswith(".py") and "\t" in line):
                untidy.append(f"{name}:{number}: blanks at the end, a tab or a carriage return")
    assert not untidy, "\n".join(untidy)


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("LICENSE", "MIT License"),
        ("LICENSE-TEXT", "The text, diagrams"),
        ("CITATION.cff", "cff-version: 1.2.0"),
        ("CHANGELOG.md", "# Changelog"),
        ("CONTRIBUTING.md", "# Contributing"),
        ("README.md", "# "),
    ],
)
def test_repository_says_what_it_is(name: str, beginning: str) -> None:
    """Licences, citation, history and the way to contribute are there."""
    assert text_of(name).startswith(beginning)


def test_version_is_told_once() -> None:
    """Package, citation and changelog are of one version."""
    version = PROJECT["project"]["version"]
    assert yaml.safe_load(text_of("CITATION.cff"))["version"] == version
    assert re.findall(r"^## (\S+)", text_of("CHANGELOG.md"), re.MULTILINE)[0] == version


def test_readme_gives_the_two_commands() -> None:
    """A newcomer finds both commands, and every other make target the README names exists."""
    readme = text_of("README.md")
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", readme))
    assert {"site", "test"} <= named
    assert named <= targets


def test_no_stub_is_left_anywhere() -> None:
    """No file of ours says that it will be written later."""
    stub = re.compile("|".join(word.replace(" ", "") for word in ("TO DO", "FIX ME", r"\bX XX\b")))
    found = [
        f"{name}:{number}"
        for name in own(".py", ".md", ".toml", ".yml", ".yaml", ".sh", ".css", ".js", "Makefile")
        for number, line in enumerate(text_of(name).splitlines(), 1)
        if stub.search(line)
    ]
    allowed = {"tools/missing.py", "tests/test_catalogue.py"}  # they look for stubs
    assert [place for place in found if place.split(":")[0] not in allowed] == []


# What is pinned


def pinned(text: str) -> dict[str, str]:
    """Return name and version of each requirement; every one must carry a hash."""
    found = {}
    for entry in re.split(r"\n(?=\S)", text):
        if not entry.strip() or entry.startswith("#"):
            continue
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", entry)
        assert match, f"not pinned to one version: {entry.splitlines()[0]!r}"
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), f"without a hash: {match[1]}"
        found[_canonical(match[1])] = match[2]
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(group: str) -> set[str]:
    """Return the names of the packages of a dependency group, with the groups it includes."""
    names: set[str] = set()
    for entry in PROJECT["dependency-groups"][group]:
        if isinstance(entry, dict):
            names |= wanted(entry["include-group"])
        else:
            names.add(_canonical(re.split(r"[^\w.-]", entry, maxsplit=1)[0]))
    return names


@pytest.mark.parametrize(
    ("list_of", "group"), [("requirements.txt", "dev"), ("requirements-bench.txt", "bench")]
)
def test_requirements_are_pinned_by_hash_and_complete(list_of: str, group: str) -> None:
    """Every package is one version with hashes, and every one that pyproject.toml names is in the list."""
    versions = pinned(text_of(list_of))
    assert wanted(group) <= set(versions)
    for entry in PROJECT["dependency-groups"][group]:
        if isinstance(entry, str) and "==" in entry:
            name, version = entry.split("==")
            assert versions[_canonical(name)] == version


def test_dependencies_of_the_package_are_pinned_too() -> None:
    """What `pip install .` needs, extras included, is in the list that the tests run with."""
    project = PROJECT["project"]
    extras = [entry for entries in project["optional-dependencies"].values() for entry in entries]
    names = {
        _canonical(re.split(r"[^\w.-]", entry, maxsplit=1)[0]) for entry in project["dependencies"] + extras
    }
    assert names <= set(pinned(text_of("requirements.txt")))


def test_one_list_does_not_contradict_the_other() -> None:
    """A package that both environments hold is the same version in both."""
    first, second = pinned(text_of("requirements.txt")), pinned(text_of("requirements-bench.txt"))
    assert {name for name in first.keys() & second.keys() if first[name] != second[name]} == set()


@pytest.mark.parametrize("bad", ["redis>=8\n", "redis==8.1.0\n", "redis==8.1.0 \\\n    --hash=md5:00\n"])
def test_requirement_without_pin_or_hash_is_found(bad: str) -> None:
    """A range, a missing hash and a weak one are all refused."""
    with pytest.raises(AssertionError, match=r"not pinned|without a hash"):
        pinned(bad)


# What is silenced

_SILENCING = re.compile(
    r"#\s*(?P<what>(?:ruff:\s*)?noqa(?::\s*[A-Z0-9, ]+)?|type:\s*ignore(?:\[[\w, -]+\])?|pragma:\s*no \w+)"
    r"(?P<reason>.*)"
)


def silenced_without_reason(source: str) -> list[int]:
    """Return the lines of Python whose silencing has no reason of at least two words beside it."""
    lines = []
    for token in tokenize.tokenize(BytesIO(source.encode()).readline):
        if token.type == tokenize.COMMENT and (match := _SILENCING.search(token.string)):
            reason = match["reason"].strip(" -#:\u2014")
            bare = re.fullmatch(r"noqa|type:\s*ignore|ruff:\s*noqa", match["what"])
            if bare or len(re.findall(r"\w+", reason)) < 2:
                lines.append(token.start[0])
    return lines


def test_every_silencing_names_its_rule_and_its_reason() -> None:
    """A rule is switched off for one line, by name, with the reason beside it."""
    found = [f"{name}:{line}" for name in own(".py") for line in silenced_without_reason(text_of(name))]
    assert not found, "a silencing without a rule or a reason at " + ", ".join(found)


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("x = 1  # noqa", True),
        ("x = 1  # noqa: E501", True),
        ("x = 1  # noqa: E501 - long", True),
        ("x = 1  # noqa - a good reason", True),
        ("x = 1  # noqa: E501 - a table reads better in one line", False),
        ("x = 1  # type: ignore", True),
        ("x = 1  # type: ignore[misc]", True),
        ("x = 1  # type: ignore[misc]  # the assignment is what is refused", False),
        ("x = 1  # pragma: no cover", True),
        ("x = 1  # pragma: no cover - only on a broken disk", False),
        ("x = '# noqa'", False),
        ("x = 1  # says nothing", False),
    ],
)
def test_silencing_without_reason_is_found(line: str, *, refused: bool) -> None:
    """A bare silencing, one without a reason and one that silences everything are refused."""
    assert bool(silenced_without_reason(line + "\n")) is refused


# What each test claims


def without_claim(source: str) -> list[str]:
    """Return the test functions whose docstring is not one paragraph that ends in a full stop."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            claim = ast.get_docstring(node) or ""
            if not re.fullmatch(r"\S(?:.|\n(?!\n))+\.", claim):
                found.append(node.name)
    return found


def test_every_test_claims_something() -> None:
    """Each test says in one sentence what it claims about the thing tested."""
    found = {
        name: claimless
        for name in own(".py")
        if re.fullmatch(r"tests/(?:\w+/)?test_\w+\.py", name) and (claimless := without_claim(text_of(name)))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "def test_x(): ...",
        "def test_x():\n    '''No full stop'''",
        "async def test_x():\n    '''One.\n\n    Two.'''",
    ],
)
def test_test_without_claim_is_found(source: str) -> None:
    """A missing docstring, one that is no sentence and one of several paragraphs are refused."""
    assert without_claim(source) == ["test_x"]


# What the machines of others run


def workflow_faults(text: str) -> list[str]:
    """Return what a workflow does that it should not."""
    flow = yaml.safe_load(text)
    found = []
    if flow.get("permissions") != {"contents": "read"}:
        found.append("the workflow must have `permissions: contents: read` at its top")
    if "pull_request_target" in text:
        found.append("pull_request_target gives secrets to strangers' code")
    for name, job in flow["jobs"].items():
        if "timeout-minutes" not in job:
            found.append(f"{name} may run for ever: give it timeout-minutes")
        if job.get("continue-on-error"):
            found.append(f"{name} cannot go red")
        for step in job["steps"]:
            if "uses" in step and not re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]):
                found.append(f"{name}: {step['uses']} is not an official action pinned by its major version")
            if step.get("continue-on-error") or "|| true" in step.get("run", ""):
                found.append(f"{name}: a step cannot go red")
            if "${{" in step.get("run", ""):
                found.append(f"{name}: an expression inside a shell command: hand it on by env")
    return found


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/workflows/*.yml")), ids=lambda path: path.stem)
def test_workflow_is_modest_and_can_go_red(path: Path) -> None:
    """A workflow has the least permissions, pinned actions, time limits, and no step that cannot fail."""
    assert workflow_faults(path.read_text("utf-8")) == []


def test_workflow_that_is_not_modest_is_found() -> None:
    """Each of the rules above finds what breaks it."""
    flow = {
        "jobs": {
            "a": {
                "continue-on-error": True,
                "steps": [
                    {"uses": "stranger/action@main"},
                    {"run": "make test || true"},
                    {"run": "echo ${{ github.event.issue.title }}"},
                ],
            }
        }
    }
    found = "\n".join(workflow_faults(yaml.safe_dump(flow) + "# pull_request_target\n"))
    for complaint in (
        "permissions",
        "secrets",
        "for ever",
        "a cannot go red",
        "official",
        "a step",
        "by env",
    ):
        assert complaint in found


def test_workflows_test_what_the_package_promises() -> None:
    """Every Python that the package says it supports is tested on Linux and macOS, by `make test`."""
    flow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text("utf-8"))
    matrix = flow["jobs"]["test"]["strategy"]["matrix"]
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert matrix == {"os": ["ubuntu-latest", "macos-latest"], "python": promised}
    assert "make test" in str(flow["jobs"]["test"]["steps"])


@pytest.mark.parametrize("script", [".ci/run", ".ci/podman-setup"])
def test_ci_script_parses_and_can_go_red(script: str) -> None:
    """The script stops at the first failure, swallows none, and is valid."""
    text = (ROOT / script).read_text("utf-8")
    assert "set -euo pipefail" in text
    assert not re.search(r"\|\|\s*(?:true|:)", text)
    done = subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ci_allows_no_skip() -> None:
    """`.ci/run` names every service that a test may ask for, so that none of them can be skipped."""
    asked = {
        service
        for name in own(".py")
        if name.startswith("tests/")
        for service in re.findall(r"\bneeds\(\"([\w-]+)\"\)", text_of(name))
    } - {"no-such-service", "sh"}
    required = re.search(r"REQUIRE=(\S+)", (ROOT / ".ci/run").read_text("utf-8"))
    assert required is not None
    assert asked <= set(required[1].split(","))


# What the tools say


@pytest.mark.parametrize(
    "arguments",
    [["check", "--output-format=concise"], ["format", "--check", "--output-format=concise"]],
    ids=["lint", "format"],
)
def test_ruff_has_nothing_to_say(arguments: list[str]) -> None:
    """Lint and format are clean over the whole tree."""
    run = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_types_hold_strictly() -> None:
    """Under --strict mypy has nothing to say about package, tools, tests, benchmarks and diagrams."""
    run = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
