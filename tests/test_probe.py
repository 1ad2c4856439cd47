"""Proof of patterns/probe.py."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from patterns.probe import ask, main
from patterns.serving import serving

if TYPE_CHECKING:
    from collections.abc import Iterator


async def health(request: web.Request) -> web.Response:
    return web.Response(text="x" * 9000 if request.path == "/long" else "ready")


async def no(request: web.Request) -> web.Response:
    return web.Response(status=int(request.match_info["status"]), text="not yet")


async def test_200_is_yes_and_all_else_is_no() -> None:
    """The exit code is 0 for a 200, 1 for another answer and for none."""
    app = web.Application()
    app.router.add_get("/livez", health)
    app.router.add_get("/long", health)
    app.router.add_get("/no/{status}", no)
    async with serving(app) as server:
        os.environ["PROBED_PORT"] = str(server.port)
        for path, code in (("/livez", 0), ("/no/503", 1), ("/no/204", 1), ("/no/302", 1), ("/nowhere", 1)):
            assert await asyncio.to_thread(main, ["PROBED_PORT", path]) == code
        assert await asyncio.to_thread(ask, "/livez", server.port) == "ready"
        long = await asyncio.to_thread(ask, "/long", server.port)
        assert long == "x" * 4096
    assert main(["PROBED_PORT", "/livez"]) == 1


@contextmanager
def answering(raw: bytes) -> Iterator[int]:
    """Listen once, and answer these bytes to whatever is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(raw)

        thread = Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 20", b"+PONG\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\xff" * 100])
def test_garbage_is_no(raw: bytes) -> None:
    """Something else that listens on the port is not healthy."""
    with answering(raw) as port:
        assert ask("/livez", port) is None


def test_silence_is_no() -> None:
    """A port that accepts and says nothing is given up after the time-out."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert ask("/livez", listener.getsockname()[1], timeout=0.05) is None


@pytest.mark.parametrize("port", ["", "0", "65536", " 80", "+80", "٨٠", "8_0", "99999", "9" * 5000])
def test_port_that_is_none_is_an_error_of_the_manifest(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The variable's name is in the message, and the exit code is not that of an unhealthy container."""
    monkeypatch.setenv("PROBED_PORT", port)
    assert main(["PROBED_PORT", "/livez"]) == 2
    assert capsys.readouterr().err == f"PROBED_PORT must be a port, got {port!r}\n"


@pytest.mark.parametrize("arguments", [[], ["PORT"], ["PORT", "livez"], ["PORT", "/", "more"]])
def test_wrong_arguments_are_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A probe that is called wrongly says how it is called."""
    assert main(arguments) == 2
    assert "VARIABLE /PATH" in capsys.readouterr().err


def test_it_runs_as_the_manifests_call_it() -> None:
    """`python3 -P -m patterns.probe` without anything installed beside it."""
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as port:
        command = [sys.executable, "-S", "-P", "-m", "patterns.probe", "PORT", "/livez"]
        env = {"PYTHONPATH": os.getcwd(), "PORT": str(port)}
        assert subprocess.run(command, env=env, check=False, timeout=20).returncode == 0
