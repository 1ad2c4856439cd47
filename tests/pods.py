"""Builds the images of a container pattern and plays its Pods: `python -m tests.pods container/x` builds.

    def test_...(pods, server):
        with pods.played("container/x", config={"REDIS_URL": server.url, "PORT": pods.free_port()}) as pod:
            pod.kill("application")                                        # SIGKILL from outside
            await eventually(lambda: pod.restarts("application") == 1, within=20)

An image is a stage of `patterns/<key>/Containerfile` on which no other is built. All begin with the same
stage, `ground`. The build asks no network: the wheels are those of requirements.txt, with its hashes, chosen
for the Python of the base image, and downloaded once, to .cache/wheels. A session builds each image once,
under a tag of its own, and takes it away. The ground, which takes longest and seldom changes, is left to
podman's cache: `podman rmi $(podman images -q localhost/patterns-ground)`.

A Pod runs on the host's network, so that it reaches the servers of a test; all names are the session's own.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

__all__ = ["Pod", "Pods", "image_name", "targets"]

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / ".cache" / "wheels"
DEFAULT_BASE = "docker.io/library/python:3.12-slim"  # of the Containerfiles
LOCAL_BASE = "localhost/python-base:bookworm"  # Debian's Python; where there is one, nothing is pulled
GROUND = "ground"
_STAGE = re.compile(r"^FROM\s+(\S+)\s+AS\s+(\S+)\s*$", re.MULTILINE)
_ABOUT = """
import json, os, platform, sys
print(json.dumps({
    "implementation_name": sys.implementation.name,
    "os_name": os.name,
    "platform_machine": platform.machine(),
    "platform_python_implementation": platform.python_implementation(),
    "platform_system": platform.system(),
    "python_full_version": platform.python_version(),
    "python_version": "%d.%d" % sys.version_info[:2],
    "sys_platform": sys.platform,
    "libc": platform.libc_ver()[0],
    "extra": "",
}))
"""


def targets(key: str) -> list[str]:
    """Return the stages of a pattern's Containerfile that become images, in its order."""
    stages = _STAGE.findall((ROOT / "patterns" / key / "Containerfile").read_text("utf-8"))
    return [stage for _, stage in stages if stage not in {base for base, _ in stages}]


def image_name(key: str, target: str) -> str:
    """Return the name by which a manifest knows an image."""
    return f"localhost/{key.rpartition('/')[2].replace('_', '-')}-{target}:1"


class Pod:
    """What was played from one manifest: the containers of one Pod or of several.

    Attributes:
        names: of the Pods, as podman knows them.
    """

    def __init__(self, podman: Callable[..., str], containers: Mapping[str, str], names: list[str]) -> None:
        self._podman = podman
        self._containers = containers
        self.names = names

    @property
    def name(self) -> str:
        """The name of the Pod, if it is one."""
        (only,) = self.names
        return only

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what podman knows of a container."""
        found: list[dict[str, Any]] = json.loads(self._podman("inspect", self._containers[container]))
        return found[0]

    def pid(self, container: str) -> int:
        """Return the process id of a container, as seen from outside; 0 while it does not run."""
        return int(self.inspect(container)["State"]["Pid"])

    def restarts(self, container: str) -> int:
        """Return how often a container was started again after it had ended."""
        return int(self.inspect(container)["RestartCount"])

    def exit_code(self, container: str) -> int | None:
        """Return a container's exit code; None while it runs."""
        state = self.inspect(container)["State"]
        return int(state["ExitCode"]) if state["Status"] in {"exited", "stopped"} else None

    def kill(self, container: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal from outside and return to which pid: a crash, after which restartPolicy decides.

        What `podman kill` does counts as a wish, and is not restarted.
        """
        pid = self.pid(container)
        assert pid, f"{container} does not run:\n{self.text(container)}"
        beside = ["podman", "unshare"] if os.geteuid() else []
        subprocess.run([*beside, "kill", f"-{int(number)}", str(pid)], check=True, timeout=60)
        return pid

    def stop(self, *, within: int = 20) -> None:
        """End the Pods in good order: SIGTERM, and SIGKILL after `within` seconds."""
        self._podman("pod", "stop", "--time", str(within), *self.names)

    def logs(self, container: str) -> list[tuple[float, str]]:
        """Return the lines that a container has written, each with its time in seconds since the epoch."""
        found = []
        for line in self._podman("logs", "--timestamps", self._containers[container]).splitlines():
            if stamp := re.match(r"(\S+?\.\d{6})\d*(Z|[+-]\d\d:\d\d) (.*)", line):
                at = datetime.fromisoformat(stamp[1] + stamp[2].replace("Z", "+00:00"))
                found.append((at.timestamp(), stamp[3]))
        return found

    def text(self, container: str) -> str:
        """Return what a container has written, whole."""
        return "\n".join(line for _, line in self.logs(container))


class Pods:
    """Builds, plays, and takes away by name what it made.

    Args:
        podman: the program.
    """

    def __init__(self, podman: str) -> None:
        self._path = podman
        self._built: dict[str, dict[str, str]] = {}
        self._count = itertools.count(1)
        self._removing: list[subprocess.Popen[bytes]] = []
        self.id = f"test-{os.getpid()}-{random.SystemRandom().randrange(1 << 32):x}"

    def __enter__(self) -> Self:
        # Empty: podman builds from a directory that has an image's name.
        self._folder = tempfile.TemporaryDirectory(prefix="pods-")
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._removing:
            each.wait(60)
        images = [image for built in self._built.values() for image in built.values()]
        if images:
            self("rmi", "--force", *images, check=False)
        self._folder.cleanup()

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """Run podman and return what it printed; what it says of an error comes with the exception."""
        command = [self._path, *arguments]
        done = subprocess.run(
            command,
            cwd=self._folder.name,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if arguments[0] == "logs" else subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=600,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    @staticmethod
    def free_port() -> int:
        """Return a port of loopback on which nobody listens."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    @contextmanager
    def played(
        self,
        key: str,
        *,
        config: Mapping[str, object] | None = None,
        manifest: str = "pod.yaml",
        change: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> Iterator[Pod]:
        """Play a manifest of a pattern while the block runs.

        Args:
            key: `container/name`.
            config: for the ConfigMap of config.yaml, over what stands there.
            manifest: the file beside the module.
            change: is given the documents of the manifest, and may edit them.
        """
        images = self.images(key)
        source = ROOT / "patterns" / key
        documents = [each for each in yaml.safe_load_all((source / manifest).read_text("utf-8")) if each]
        documents = json.loads(json.dumps(documents))  # what an anchor repeats is one object until now
        if change is not None:
            change(documents)
        number = next(self._count)
        containers, names, volumes = self._renamed(documents, f"{self.id}-{number}", key, images)
        values = yaml.safe_load((source / "config.yaml").read_text("utf-8"))
        values["data"] |= {name: str(value) for name, value in (config or {}).items()}
        with tempfile.TemporaryDirectory(prefix="manifest-") as folder:
            file, given = Path(folder, "manifest.yaml"), Path(folder, "config.yaml")
            file.write_text(yaml.safe_dump_all(documents))
            given.write_text(yaml.safe_dump(values))
            try:
                self("kube", "play", "--network", "host", "--configmap", str(given), str(file))
                pod = Pod(self, containers, names)
                try:
                    yield pod
                except BaseException as error:
                    for container in containers:
                        with suppress(AssertionError):
                            error.add_note(f"{container} wrote:\n{pod.text(container)[-2000:]}")
                    raise
            finally:
                self._remove(names, volumes)

    def _remove(self, names: list[str], volumes: list[str]) -> None:
        # Where cgroups are hybrid podman 4.3 takes seconds to take a Pod's away: nobody waits for that.
        self("pod", "kill", *names, check=False)
        podman = shlex.quote(self._path)
        pods, leftover = shlex.join(names), shlex.join(volumes)
        script = f"{podman} pod rm --force --time 0 {pods}"
        script += f"; {podman} volume rm --force {leftover}" if volumes else ""
        self._removing.append(
            subprocess.Popen(
                ["/bin/sh", "-c", script],
                cwd=self._folder.name,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def _renamed(
        self, documents: list[dict[str, Any]], own: str, key: str, images: Mapping[str, str]
    ) -> tuple[dict[str, str], list[str], list[str]]:
        """Give everything a name of the session's own; return containers, Pods and volumes."""
        known = {image_name(key, target): image for target, image in images.items()}
        containers: dict[str, str] = {}
        names, volumes = [], []
        for index, document in enumerate(documents):
            assert document["kind"] == "Pod", f"podman plays Pods here, and {document['kind']} is none"
            name = own if len(documents) == 1 else f"{own}-{index}"
            document["metadata"]["name"] = name
            names.append(name)
            spec = document["spec"]
            for volume in spec.get("volumes", []):
                volume["name"] = f"{name}-{volume['name']}"
                volumes.append(volume["name"])
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                assert container["name"] not in containers, f"two containers are called {container['name']}"
                containers[container["name"]] = f"{name}-{container['name']}"
                container["image"] = known[container["image"]]
                for mount in container.get("volumeMounts", []):
                    mount["name"] = f"{name}-{mount['name']}"
        return containers, names, volumes

    # building

    def images(self, key: str) -> dict[str, str]:
        """Return the images of a pattern, target by target; they are built once a session."""
        if key not in self._built:
            built = {target: image_name(key, target).removesuffix(":1") for target in targets(key)}
            self._built[key] = {target: f"{name}:{self.id}" for target, name in built.items()}
            self.build(key, self._built[key])
        return self._built[key]

    def build(self, key: str, names: Mapping[str, str]) -> None:
        """Build the targets of a pattern under these names."""
        with tempfile.TemporaryDirectory(prefix="context-") as folder:
            context = Path(folder)
            ground = f"localhost/patterns-ground:{self._lay_out(context)}"
            file = ROOT / "patterns" / key / "Containerfile"
            with (WHEELS / "lock").open("w") as lock:  # who waits finds the ground in podman's cache
                fcntl.flock(lock, fcntl.LOCK_EX)
                if ground not in self("images", "--format", "{{.Repository}}:{{.Tag}}"):
                    self._build(file, GROUND, ground, context)
            for target, name in names.items():
                self._build(file, target, name, context)

    def _build(self, file: Path, target: str, name: str, context: Path) -> None:
        base = ["--build-arg", f"BASE={self._base}"] if self._base else []
        options = ["--quiet", "--network=none", "--target", target, *base, "--file", str(file)]
        self("build", *options, "--tag", name, str(context))

    def _lay_out(self, context: Path) -> str:
        """Make `context` that of the Containerfiles; return what tells its ground from others."""
        hidden = shutil.ignore_patterns("__pycache__", "*.pyc", "*.sock")
        shutil.copytree(ROOT / "patterns", context / "patterns", ignore=hidden)
        wheels = self._wheels()
        shutil.copytree(wheels, context / "wheels")
        for path in (context, *context.rglob("*")):  # podman's cache looks at dates and permissions
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (0, 0))
        return wheels.name

    @cached_property
    def _base(self) -> str | None:
        """BASE_IMAGE, or the local base image if there is one; None is the Containerfile's own."""
        if given := os.environ.get("BASE_IMAGE"):
            return given
        local = subprocess.run([self._path, "image", "exists", LOCAL_BASE], check=False, timeout=60)
        return LOCAL_BASE if local.returncode == 0 else None

    def _wheels(self) -> Path:
        """Return the folder of the wheels that the base image needs; its name tells grounds apart."""
        WHEELS.mkdir(parents=True, exist_ok=True)
        about = self._about()
        pins = _pins(about)
        mark = hashlib.sha256(json.dumps([about, pins], sort_keys=True).encode()).hexdigest()[:12]
        folder = WHEELS / f"{about['python_full_version']}-{about['platform_machine']}-{mark}"
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=WHEELS) as fresh:
                _download(pins, about, Path(fresh))
                _put(Path(fresh, "wheels"), folder)
        return folder

    def _about(self) -> dict[str, str]:
        """Return what the base image says of its Python."""
        base = self._base or DEFAULT_BASE
        identity = (
            self("images", "--no-trunc", "--quiet", base).strip() or self("pull", "--quiet", base).strip()
        )
        known = WHEELS / f"{identity.rpartition(':')[2]}.json"
        if not known.exists():
            with tempfile.TemporaryDirectory(dir=WHEELS) as fresh:
                said = self("run", "--rm", "--network=none", base, "python3", "-c", _ABOUT)
                Path(fresh, "about").write_text(said)
                _put(Path(fresh, "about"), known)
        about: dict[str, str] = json.loads(known.read_text())
        return about | {"base": known.stem}


def _put(fresh: Path, place: Path) -> None:
    try:
        fresh.rename(place)
    except OSError:
        if not place.exists():  # else somebody was faster
            raise


def _pins(about: dict[str, str]) -> list[str]:
    """Return the lines of requirements.txt, hashes and all, for redis and the extra `container` there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        Requirement(each)
        for each in [*project["dependencies"], *project["optional-dependencies"]["container"]]
    ]
    names: set[str] = set()
    while wanted:
        requirement = wanted.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if (requirement.marker is None or requirement.marker.evaluate(about)) and name not in names:
            names.add(name)
            wanted += [Requirement(each) for each in _requires(name)]
    locked = (ROOT / "requirements.txt").read_text("utf-8")
    found = re.findall(
        r"^([\w.-]+)(==\S+)(?: ;[^\\\n]*)?((?: \\\n +--hash=\S+)+)", locked, re.MULTILINE
    )  # a marker there is about the Python of this machine
    pins = {name: f"{name}{version}{hashes}" for name, version, hashes in found if name in names}
    if missing := names - set(pins):
        raise RuntimeError(f"requirements.txt does not pin {', '.join(sorted(missing))}")
    return [pins[name] for name in sorted(pins)]


def _requires(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # not needed on this machine's Python: a backport
        return []


def _download(pins: list[str], about: dict[str, str], folder: Path) -> None:
    (folder / "pins.txt").write_text("\n".join(pins) + "\n")
    linux = "manylinux" if about["libc"] == "glibc" else "musllinux"
    kinds = {"manylinux": ("2014", "_2_17", "_2_28"), "musllinux": ("_1_1", "_1_2")}[linux]
    machine = about["platform_machine"]
    platforms = [word for kind in kinds for word in ("--platform", f"{linux}{kind}_{machine}")]
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", *platforms]
    options += ["--python-version", about["python_version"], "--implementation", "cp"]
    command = [sys.executable, "-m", "pip", "download", *options]
    command += ["--dest", str(folder / "wheels"), "--requirement", str(folder / "pins.txt")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"pip download: {done.stderr}")


def main(keys: list[str]) -> None:
    """Build the images of these patterns under the names that their manifests use."""
    with Pods(shutil.which("podman") or sys.exit("podman is not on PATH")) as pods:
        for key in keys:
            names = {target: image_name(key, target) for target in targets(key)}
            pods.build(key, names)
            print(f"built {', '.join(names.values())}")


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit("usage: python -m tests.pods container/NAME ..."))
