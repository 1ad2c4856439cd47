"""The site, built once for all tests of a process, by the command that a reader runs."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(root: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m tools.site build` in a repository."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for name in ("SITE_URL", "REPO_URL", "RESULTS_DIR"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "tools.site", "build", str(folder)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@functools.cache
def built() -> Path:
    """Return the folder of the built site; it is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="site-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    done = build(ROOT, folder)
    assert done.returncode == 0, f"`make site` fails:\n{done.stderr}"
    return folder
