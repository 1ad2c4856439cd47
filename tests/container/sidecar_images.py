"""Builds the sidecar's two images, and plays its Pod: `python -m tests.container.sidecar_images` builds.

The build asks no network. The wheels are those of requirements.txt, with their hashes; they are downloaded
once, to .cache/wheels.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator

__all__ = ["APPLICATION", "SIDECAR", "Podman", "build", "crash", "hears", "lay_out", "logs", "played"]

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "patterns" / "container" / "sidecar"
WHEELS = ROOT / ".cache" / "wheels"
APPLICATION, SIDECAR = "localhost/orders:1", "localhost/orders-sidecar:1"
LOCAL_BASE = "localhost/python-base:bookworm"  # Debian's Python; where there is one, nothing is pulled


def lay_out(folder: Path) -> None:
    """Make `folder` the context of the Containerfile."""
    hidden = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "patterns", folder / "patterns", ignore=hidden)
    shutil.copytree(_wheels(), folder / "wheels")


def _wheels() -> Path:
    """Return the folder of redis and, for a Python older than 3.11.3, async-timeout."""
    locked = (ROOT / "requirements.txt").read_text("utf-8")
    wanted = re.findall(
        r"^(?:redis|async-timeout)==\S+(?: ;[^\\]*)?(?: \\\n +--hash=\S+)+", locked, re.MULTILINE
    )
    pins = [re.sub(r" ;[^\\]*", " ", pin) for pin in wanted]  # its marker is about the Python of this machine
    folder = WHEELS / "-".join(re.sub(r"[^\w.=]", "", pin.split()[0]) for pin in pins)
    if not folder.is_dir():
        WHEELS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=WHEELS) as fresh:
            pinned = Path(fresh, "pins.txt")
            pinned.write_text("\n".join(pins) + "\n")
            options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                *options,
                "-d",
                f"{fresh}/wheels",
                "-r",
                str(pinned),
            ]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            Path(fresh, "wheels").rename(folder)
    return folder


def base_image(podman: str) -> str | None:
    """Return BASE_IMAGE, or the local base image if there is one; None takes the Containerfile's own."""
    local = subprocess.run([podman, "image", "exists", LOCAL_BASE], check=False, timeout=60).returncode == 0
    return os.environ.get("BASE_IMAGE") or (LOCAL_BASE if local else None)


def build(podman: str, *, application: str = APPLICATION, sidecar: str = SIDECAR) -> None:
    """Build both images under these names."""
    base = base_image(podman)
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder, "context")
        context.mkdir()
        lay_out(context)
        for target, name in (("application", application), ("sidecar", sidecar)):
            options = ["--build-arg", f"BASE={base}"] if base else []
            file = ["--file", str(HERE / "Containerfile")]
            command = [
                podman,
                "build",
                "--quiet",
                "--target",
                target,
                *options,
                *file,
                "--tag",
                name,
                str(context),
            ]
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
            if done.returncode:
                raise RuntimeError(f"podman build of {target} failed:\n{done.stderr}")


class Podman:
    """Runs podman, and takes away by name what it made."""

    def __init__(self, path: str, folder: Path) -> None:
        self.path = path
        self.folder = folder  # empty: podman builds from a directory that has an image's name
        self.id = f"test-{os.getpid()}-{random.SystemRandom().randrange(1 << 32):x}"
        self.application = f"localhost/orders-{self.id}:1"
        self.sidecar = f"localhost/orders-sidecar-{self.id}:1"

    def __call__(self, *arguments: str, check: bool = True) -> str:
        command = [self.path, *arguments]
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what podman knows of a container of the Pod."""
        found: list[dict[str, Any]] = json.loads(self("inspect", f"{self.id}-{container}"))
        return found[0]

    def clean(self) -> None:
        """Remove the Pod, its volume and the images."""
        self("pod", "rm", "--force", "--time", "0", self.id, check=False)
        self("volume", "rm", "--force", f"{self.id}-log", check=False)
        self("rmi", "--force", self.application, self.sidecar, check=False)


@contextmanager
def played(podman: Podman, folder: Path, url: str, port: int, **changes: str) -> Iterator[Path]:
    """Play pod.yaml under another name, on the host's network so that it reaches the test's server."""
    pod = yaml.safe_load((HERE / "pod.yaml").read_text())
    pod["metadata"]["name"] = podman.id
    pod["spec"] |= {"restartPolicy": changes.pop("restartPolicy", "Always")}
    pod["spec"]["volumes"][0]["name"] = f"{podman.id}-log"
    for container, image in zip(pod["spec"]["containers"], (podman.sidecar, podman.application), strict=True):
        container["image"] = image
        container["volumeMounts"][0]["name"] = f"{podman.id}-log"
    config = yaml.safe_load((HERE / "config.yaml").read_text())
    config["data"] |= {"REDIS_URL": url, "HEALTH_PORT": str(port), "SOURCE": "orders", **changes}
    for name, content in (("pod.yaml", pod), ("config.yaml", config)):
        (folder / name).write_text(yaml.safe_dump(content))
    try:
        podman(
            "kube", "play", "--network", "host", "--configmap", f"{folder}/config.yaml", f"{folder}/pod.yaml"
        )
        yield folder / "pod.yaml"
    finally:
        podman("kube", "down", f"{folder}/pod.yaml", check=False)
        podman("volume", "rm", "--force", f"{podman.id}-log", check=False)


def crash(podman: Podman, pid: int) -> None:
    """SIGKILL from outside: what `podman kill` does counts as a wish, and is not restarted."""
    beside = [podman.path, "unshare"] if os.geteuid() else []
    subprocess.run([*beside, "kill", "-KILL", str(pid)], check=True, timeout=60)


def hears(pid: int, number: signal.Signals) -> bool:
    """Whether a signal would reach this process now: it has a handler for it, or keeps it back."""
    lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    masks = {line[0]: int(line[1], 16) for line in lines if line[0] in {"SigBlk:", "SigCgt:"}}
    return any(mask >> (number - 1) & 1 for mask in masks.values())


def logs(podman: Podman, container: str) -> list[tuple[float, str]]:
    """Return the lines that a container has written, each with its time in seconds since the epoch."""
    command = [podman.path, "logs", "--timestamps", f"{podman.id}-{container}"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=True
    )
    found = []
    for line in done.stdout.splitlines():
        if stamp := re.match(r"(\S+?\.\d{6})\d*(Z|[+-]\d\d:\d\d) (.*)", line):
            at = datetime.fromisoformat(stamp[1] + stamp[2].replace("Z", "+00:00"))
            found.append((at.timestamp(), stamp[3]))
    return found


if __name__ == "__main__":
    build(shutil.which("podman") or sys.exit("podman is not on PATH"))
    print(f"built {APPLICATION} and {SIDECAR}")
