"""How the tests run: coroutines on a strict loop, faults with their books, real servers, services by name.

Nothing here is a plug-in: an `async def` test runs in `asyncio.Runner(debug=True)` and fails if it leaves a
task behind or an exception that nobody read. A test marked `@pytest.mark.fault("what is injected")` must
close books for it, and a fault that hit nothing fails. The rows of all workers are joined at the end of the
run and written to RESULTS_DIR (`make faults` sets it to `results`); without it only their form is checked.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import uuid
from asyncio import constants
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import hypothesis
import pytest

from tests.faults import leaks
from tests.faults.ledger import Broken, Ledger
from tests.faults.rows import Declared, declared, join, leave
from tests.faults.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from patterns.embedded import Cluster, Server
    from tests.places import Place
    from tests.pods import Pods
    from tests.postgres import Home, Postgres

ROOT = Path(__file__).resolve().parent.parent
# A loop in debug mode notes where each handle was made: one line of it, not ten, halves the time.
vars(constants)["DEBUG_STACK_DEPTH"] = 1
LONGEST = 60.0  # seconds for one asynchronous test; past it the test hangs

# One seed a run, the same each time unless FAULT_SEED says otherwise; `random` draws one, for a nightly run.
if os.environ.get("FAULT_SEED") == "random":
    os.environ["FAULT_SEED"] = str(secrets.randbelow(1 << 32))  # workers of xdist inherit it
    hypothesis.settings.register_profile("run", deadline=None, print_blob=True)
else:
    os.environ.setdefault("FAULT_SEED", "20261124")
    hypothesis.settings.register_profile("run", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("run")
SEED = int(os.environ["FAULT_SEED"])

_books = pytest.StashKey[list[Ledger]]()
_folder = pytest.StashKey[Path]()
_lines = pytest.StashKey[list[str]]()


# --- how a test runs ---------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = _on_a_strict_loop(pyfuncitem.obj)
    result = yield
    _check_books(pyfuncitem)
    return result


def _on_a_strict_loop(test: Callable[..., Any]) -> Callable[..., None]:
    async def watched(**arguments: Any) -> None:
        unread: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, context: unread.append(f"{context['message']}: {context.get('exception')!r}")
        )
        async with asyncio.timeout(LONGEST):
            await test(**arguments)
        stray = await leaks.stray_tasks()
        assert not stray, f"the test left tasks behind: {stray}"
        assert not unread, f"the loop had to report: {unread}"

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        with asyncio.Runner(debug=True) as runner, _short_stacks():
            runner.run(watched(**arguments))

    return run


@contextmanager
def _short_stacks() -> Iterator[None]:
    """Let futures of a loop in debug mode note one line of where they were made: a third of the time."""
    sys.tracebacklimit = 1
    try:
        yield
    finally:
        del sys.tracebacklimit


# --- faults and their books --------------------------------------------------------------------------------


@pytest.fixture
def ledger(request: pytest.FixtureRequest) -> Callable[..., Ledger]:
    """Open the books of a fault that the test's marker declares; see Ledger for the limits.

    With several markers on one test: `ledger("which of them", lost=1)`.
    The books are closed, and so checked, when the test has ended without an exception.
    """
    books = request.node.stash.setdefault(_books, [])
    faults = _declared_by(request.node)

    def opened(fault: str | None = None, **limits: Any) -> Ledger:
        found = [each for each in faults if fault in {None, each.fault}]
        if len(found) != 1:
            raise ValueError(f"which fault? this test's markers declare {[each.fault for each in faults]}")
        books.append(book := Ledger(*found[0], **limits))
        return book

    return opened


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Chance, drawn from FAULT_SEED and the test's name: the same whichever tests run beside it."""
    return random.Random(f"{SEED} {request.node.nodeid}")


def _declared_by(item: pytest.Item) -> list[Declared]:
    own = _pattern_of(item.path, item.config)
    found = []
    for marker in reversed(list(item.iter_markers("fault"))):
        pattern = marker.kwargs.get("pattern", own)
        if pattern is None or len(marker.args) != 1:
            raise pytest.UsageError(f"{item.nodeid}: want pytest.mark.fault('name', pattern='category/name')")
        found.append(Declared(pattern, marker.args[0]))
    return found


def _pattern_of(path: Path, config: pytest.Config) -> str | None:
    tests = config.rootpath / "tests"
    parts = path.relative_to(tests).parts if path.is_relative_to(tests) else ()
    return f"{parts[0]}/{path.stem.removeprefix('test_')}" if len(parts) == 2 else None


def _check_books(item: pytest.Function) -> None:
    faults, books = _declared_by(item), item.stash.get(_books, [])
    for book in books:
        if not book.closed:
            book.close()
    if without := {each.fault for each in faults} - {book.fault for book in books}:
        raise Broken(
            f"the test is marked with {sorted(without)} and keeps no books of it: use the `ledger` fixture"
        )
    if books and (folder := item.config.stash.get(_folder, None)):
        leave(folder, item.nodeid, faults, books)


def pytest_configure(config: pytest.Config) -> None:
    given = getattr(config, "workerinput", {}).get("fault_rows")
    config.stash[_folder] = Path(given or tempfile.mkdtemp(prefix="fault-rows-"))
    config.stash[_lines] = []
    if not given:
        config.add_cleanup(lambda: shutil.rmtree(config.stash[_folder], ignore_errors=True))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # xdist: on the controller, for each worker
    node.workerinput["fault_rows"] = str(node.config.stash[_folder])


def pytest_report_header() -> str:
    return f"FAULT_SEED={SEED}"


def pytest_deselected(items: list[pytest.Item]) -> None:
    _expect(items)


# First: xdist reports the collection, and hands out tests, from a hook of the same name.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    _expect(session.items)


def _expect(items: list[pytest.Item]) -> None:
    for item in items:
        if faults := _declared_by(item):
            leave(item.config.stash[_folder], item.nodeid, faults)


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    given = os.environ.get("RESULTS_DIR")
    files = sorted(config.rootpath.glob("tests/**/test_*.py"))
    order = [each for path in files for each in declared(path, _pattern_of(path, config))]
    for pattern, joined in join(config.stash[_folder], order).items():
        config.stash[_lines] += joined.lines
        if joined.missing:
            if given and joined.lines:  # some of them ran
                missing = "; ".join(joined.missing)
                config.stash[_lines].append(
                    f"results/faults/{pattern}.json is as it was, for want of: {missing}"
                )
            continue
        from tools import results  # noqa: PLC0415  only a run with faults needs the tools of the site

        results.write(
            "faults", pattern, joined.rows, seed=SEED, folder=None if given else config.stash[_folder]
        )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_lines]:
        terminalreporter.section("faults")
        for line in config.stash[_lines]:
            terminalreporter.write_line(line)


# --- what a test may not leave behind ----------------------------------------------------------------------


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """The test closes every descriptor and ends every process that it opened.

    Ask with `@pytest.mark.usefixtures("no_leaks")`: it then is the first to look and the last.
    """
    with leaks.nothing_left():
        yield


# --- servers, processes, services --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def needs() -> Callable[[str], str]:
    """Return where the program of a service is, or skip; fail if REQUIRE (a,b,c) names the service.

    Of "postgres" it is the folder of its programs.
    """

    def found(service: str) -> str:
        if service == "postgres":
            from tests.postgres import binaries  # noqa: PLC0415  a run without a database needs none of it

            if folder := binaries():
                return str(folder)
            _missing(service, "PostgreSQL's initdb and postgres are not on this machine")
        names = {"chromium": ("chromium", "chromium-browser", "google-chrome")}.get(service, (service,))
        for name in names:
            if (path := shutil.which(name)) and (service != "podman" or _podman_works(path)):
                return path
        _missing(service, f"{service} is not on this machine, or does not work")

    return found


def _podman_works(path: str) -> bool:
    """Whether podman answers and, where a base image is at hand, can run it: some sandboxes forbid that."""

    def succeeds(*arguments: str) -> bool:
        run = subprocess.run([path, *arguments], capture_output=True, timeout=60, check=False)
        return run.returncode == 0

    base = os.environ.get("BASE_IMAGE", "localhost/python-base:bookworm")
    try:
        if not succeeds("info"):
            return False
        return not succeeds("image", "exists", base) or succeeds(
            "run", "--rm", "--network=none", base, "true"
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def _missing(service: str, reason: str) -> NoReturn:
    if service in os.environ.get("REQUIRE", "").split(","):
        pytest.fail(f"{reason}, and REQUIRE names it", pytrace=False)
    pytest.skip(reason)


def _started(make: Callable[[], Any]) -> Iterator[Any]:
    from patterns.embedded import NoServerBinary  # noqa: PLC0415  a test without a server needs none

    with ExitStack() as stack:
        try:
            running = stack.enter_context(make())
        except NoServerBinary as error:
            _missing("valkey", str(error))
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server for the tests of one file: use keys under `app` only, and leave it running."""
    from patterns.embedded import Server  # noqa: PLC0415  a test without a server needs none

    yield from _started(Server)


@pytest.fixture(scope="module")
def redis_url(request: pytest.FixtureRequest) -> str:
    """REDIS_URL, or a server for the tests of one file: for tests that need no more than some Redis."""
    return os.environ.get("REDIS_URL") or str(request.getfixturevalue("server").url)


@pytest.fixture
def fresh_server() -> Iterator[Server]:
    """A server of the test's own, to kill, pause, restart or fill."""
    from patterns.embedded import Server  # noqa: PLC0415  a test without a server needs none

    yield from _started(Server)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three primaries and three replicas: use keys under `app` only, and leave them running."""
    from patterns.embedded import Cluster  # noqa: PLC0415  a test without a server needs none

    yield from _started(lambda: Cluster(primaries=3, replicas=3))


@pytest.fixture(scope="session")
def postgres(needs: Callable[[str], str]) -> Iterator[Postgres]:
    """A PostgreSQL server for the tests of one process: kill or pause it, but leave it running."""
    from tests.postgres import Postgres  # noqa: PLC0415  a run without a database needs none of it

    with Postgres(Path(needs("postgres"))) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    """An empty database of the test's own, on both engines; DATABASE_URL may name the PostgreSQL."""
    from tests.postgres import Home, schema  # noqa: PLC0415  a run without a database needs none of it

    if request.param == "sqlite":
        yield Home(f"sqlite://{quote(str(tmp_path / 'source.db'))}", "sqlite")
        return
    given = os.environ.get("DATABASE_URL", "")
    server = None if given.startswith("postgresql://") else request.getfixturevalue("postgres")
    with schema(server.url if server else given, server) as home:
        yield home


@pytest.fixture
def place(kind: str, server: Server, app: str, request: pytest.FixtureRequest) -> Place:
    """One server, or the cluster where the test's parameter `kind` says so, and a name of the test's own."""
    from tests.places import Place  # noqa: PLC0415  a run without Redis needs none of it

    return Place(kind, server, request.getfixturevalue("cluster") if kind == "cluster" else None, app)


@pytest.fixture(scope="session")
def pods(needs: Callable[[str], str]) -> Iterator[Pods]:
    """Plays the Pods of container patterns; see tests/pods.py."""
    from tests.pods import Pods  # noqa: PLC0415  a run without containers needs none of it

    with Pods(needs("podman")) as running:
        yield running


@pytest.fixture
def app() -> str:
    """The test's own name for `Keyspace(app, ...)`: no two tests share a key."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def spawn() -> Iterator[Callable[..., Worker]]:
    """Start a Worker that ends with the test at the latest."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(Worker(*arguments, **options))
