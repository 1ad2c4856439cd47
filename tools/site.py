"""Builds, serves and checks the site.

    python -m tools.site build [FOLDER]   # strict: anything that is missing or leads nowhere fails
    python -m tools.site serve            # on 127.0.0.1:$PORT, reloading when a file changes
    python -m tools.site check [FOLDER]   # look over a built site: other hosts, links, anchors

What the pages are made of is in `tools.hook` and the modules that it calls; what a built site must be is
in `tools.site_check`, which does not care what built it.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from types import ModuleType

from click import ClickException
from mkdocs.commands.build import build as mkdocs_build
from mkdocs.commands.serve import serve as mkdocs_serve
from mkdocs.config import load_config
from mkdocs.exceptions import MkDocsException

from tools import site_check

__all__ = ["build", "main", "serve"]

ROOT = Path(__file__).resolve().parent.parent


class _Late(ModuleType):
    """Stands for a module until one of its names is used."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules[self.__name__] is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


# mkdocs-jupyter imports these at once, which takes longer than all the rest of a build; and a build whose
# notebooks are remembered uses neither.
for _name in ("jupytext", "mkdocs_jupyter.convert"):
    sys.modules.setdefault(_name, _Late(_name))

# Material says at each start when its support ends; the versions here are pinned.
os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")


def build(folder: Path, *, root: Path = ROOT) -> list[str]:
    """Build the site strictly into `folder` and return the sentences that say what is wrong with it."""
    _log_to_stderr(logging.WARNING)
    try:
        config = load_config(str(root / "mkdocs.yml"), site_dir=str(folder.absolute()), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        try:
            mkdocs_build(config)
        finally:
            config.plugins.on_shutdown()
    except (MkDocsException, ClickException) as error:
        return [str(error)]
    trim(folder)
    return site_check.foreign(folder)


def trim(folder: Path) -> None:
    """Remove what Material copies into every site and this one never loads: stemmers and source maps."""
    shutil.rmtree(folder / "assets" / "javascripts" / "lunr", ignore_errors=True)
    for path in [*folder.glob("assets/**/*.js.map"), *folder.glob("assets/**/*.css.map")]:
        path.unlink()


def serve(port: int, *, root: Path = ROOT) -> str | None:
    """Serve the site until interrupted; return a sentence if it cannot be served."""
    if not _is_free(port):
        return f"Port {port} is in use: choose another with PORT, as in `make serve PORT={port + 1}`."
    # Served locally, the site is at the root, whatever SITE_URL says of the published one.
    os.environ["SITE_URL"] = f"http://127.0.0.1:{port}/"
    _log_to_stderr(logging.INFO)
    # Ended by a signal it must go through its `finally`, which removes the folder that it builds into.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        mkdocs_serve(str(root / "mkdocs.yml"), strict=False, dev_addr=f"127.0.0.1:{port}", watch_theme=True)
    except MkDocsException as error:
        return str(error)
    except KeyboardInterrupt:
        pass
    return None


def main(arguments: list[str]) -> int:
    """Run one of the three commands."""
    command, *rest = arguments or [""]
    if any(argument.startswith("-") for argument in rest):
        command = ""
    folder = Path(rest[0]) if rest else ROOT / "site"
    if command == "build" and len(rest) <= 1:
        begun = time.perf_counter()
        errors = build(folder)
        if not errors:
            pages = len(list(folder.rglob("*.html")))
            print(f"{pages} pages in {time.perf_counter() - begun:.1f} s: open {_shown(folder)}/index.html")
    elif command == "check" and len(rest) <= 1:
        errors = [*site_check.foreign(folder), *site_check.broken(folder)]
    elif command == "serve" and not rest:
        port = os.environ.get("PORT", "8000")
        if not (port.isdecimal() and 0 < int(port) < 65536):
            errors = [f"PORT must be a number from 1 to 65535, got {port!r}."]
        else:
            error = serve(int(port))
            errors = [error] if error else []
    else:
        print(__doc__.split("\n\n")[1] if __doc__ else "", file=sys.stderr)
        return 2
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _shown(folder: Path) -> str:
    try:
        return folder.absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(folder)


def _log_to_stderr(level: int) -> None:
    logger = logging.getLogger("mkdocs")
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        logger.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
