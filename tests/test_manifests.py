"""Every container pattern's Containerfile and manifests, held to the rules of a Pod that runs beside others.

The manifests are validated against the schema of the stated version of Kubernetes, strictly: a field that it
does not know is an error. Each rule is shown to reject a manifest that breaks it.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

from tests.pods import ROOT, image_name, targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KUBERNETES = "1.33"
CONTAINERS = ROOT / "patterns" / "container"
KEYS = sorted(f"container/{path.parent.name}" for path in CONTAINERS.glob("*/__init__.py"))
GROUND = """\
ARG BASE=docker.io/library/python:3.12-slim

FROM ${BASE} AS ground
COPY wheels/ /wheels/
# No network: a wheel is a zip file, and Python unzips it. \
Compiled here, for the file system will be read-only.
RUN mkdir /app \\
 && for wheel in /wheels/*.whl; do python3 -m zipfile -e "$wheel" /app; done \\
 && python3 -m compileall -q -j 0 /app && rm -r /wheels
ENV PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
STOPSIGNAL SIGTERM
"""


# The rules


def broken_in_containerfile(text: str) -> Iterator[str]:
    """Say what a Containerfile breaks."""
    if not text.startswith(GROUND):
        yield "does not begin with the ground that all share, so podman builds it once more"
    users: dict[str, str] = {}
    stage = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, stage = rest.partition(" AS ")
            if base != "${BASE}" and base not in users:
                yield f"{stage} is built on {base}, not on BASE or a stage before it"
            users[stage] = users.get(base, "0")
        elif word == "USER":
            users[stage] = rest
        elif word == "ADD":
            yield "ADD fetches and unpacks: COPY does not"
    for name, user in users.items():
        if not re.fullmatch(r"[1-9]\d{3,}(:\d+)?", user):
            yield f"{name} runs as {user}: want a number, and not root's"


def broken_in_manifest(key: str, images: set[str], text: str) -> Iterator[str]:
    """Say what a file of manifests breaks."""
    without_probe = 0
    for document in yaml.safe_load_all(text):
        if not document:
            continue
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{error.path}: {error.message}"
            continue
        spec = pod_of(document)
        if spec is None:
            continue
        if spec.get("automountServiceAccountToken") is not False:
            yield "mounts the token of a service account, which nobody needs"
        if "terminationGracePeriodSeconds" not in spec:
            yield "does not say how long it may take to end"
        if any(spec.get(each) for each in ("hostNetwork", "hostPID", "hostIPC")):
            yield "shares a namespace with its host"
        if any("hostPath" in volume for volume in spec.get("volumes", [])):
            yield "mounts a folder of its host"
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            yield from (f"{container['name']} {each}" for each in broken_in_container(container, images))
            probes = {"livenessProbe", "startupProbe"} & set(container)
            without_probe += not probes and document["kind"] == "Pod"
    if without_probe > text.count("# no probe: "):
        yield "has a container without livenessProbe, startupProbe or a line `# no probe: ...` that says why"


def broken_in_container(container: dict[str, Any], images: set[str]) -> Iterator[str]:
    """Say what one container breaks."""
    if container.get("image") not in images:
        yield f"is of {container.get('image')}, which is not among {', '.join(sorted(images))}"
    if container.get("imagePullPolicy") != "Never":
        yield "may be pulled from somewhere: want imagePullPolicy Never"
    limits = container.get("resources", {}).get("limits", {})
    if not {"cpu", "memory"} <= set(limits):
        yield "has no limits of cpu and memory"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "takes a port of its host"
    security = container.get("securityContext", {})
    wanted = {
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    for field, value in wanted.items():
        if security.get(field) != value:
            yield f"has {field} {security.get(field)!r}: want {value!r}"
    if not security.get("runAsUser", 0) >= 10_000:
        yield "runs as a user that its host may know: want 10000 or more"
    if security.get("privileged"):
        yield "is privileged"


def pod_of(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the specification of the Pods that a document stands for."""
    if document["kind"] == "Pod":
        spec: dict[str, Any] = document["spec"]
        return spec
    template = document.get("spec", {}).get("template")
    return template["spec"] if template else None


# The house


@pytest.mark.parametrize("key", KEYS)
def test_container_pattern_has_images_and_a_pod(key: str) -> None:
    """A container pattern is something that runs: a Containerfile, a Pod, and the values that it is given."""
    here = ROOT / "patterns" / key
    assert [
        name for name in ("Containerfile", "pod.yaml", "config.yaml") if not (here / name).is_file()
    ] == []
    (config,) = yaml.safe_load_all((here / "config.yaml").read_text("utf-8"))
    assert config["kind"] == "ConfigMap"
    asked = set(
        re.findall(r"configMap(?:Ref|KeyRef): {name: ([\w.-]+)", (here / "pod.yaml").read_text("utf-8"))
    )
    assert asked == {config["metadata"]["name"]}


@pytest.mark.parametrize(
    "path", sorted(CONTAINERS.glob("*/Containerfile")), ids=lambda path: path.parent.name
)
def test_containerfile_keeps_the_rules(path: Path) -> None:
    """It begins with the ground that all share, takes its base as an argument, and nothing runs as root."""
    assert list(broken_in_containerfile(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "path", sorted(CONTAINERS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_manifest_keeps_the_rules(path: Path) -> None:
    """It is valid; its containers have limits, no privileges, and images of the Containerfile beside it."""
    key = f"container/{path.parent.name}"
    images = {image_name(key, target) for target in targets(key)}
    assert list(broken_in_manifest(key, images, path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "path", sorted(CONTAINERS.glob("*/Containerfile")), ids=lambda path: path.parent.name
)
def test_every_image_is_played(path: Path) -> None:
    """No stage of a Containerfile is built for nothing."""
    key = f"container/{path.parent.name}"
    text = "".join(each.read_text("utf-8") for each in path.parent.glob("*.yaml"))
    assert [target for target in targets(key) if image_name(key, target) not in text] == []


# The rules find what breaks them


def sound() -> dict[str, Any]:
    pod: dict[str, Any] = yaml.safe_load("""
        apiVersion: v1
        kind: Pod
        metadata: {name: x}
        spec:
          automountServiceAccountToken: false
          terminationGracePeriodSeconds: 5
          containers:
            - name: x
              image: localhost/x-y:1
              imagePullPolicy: Never
              livenessProbe: {exec: {command: ["true"]}}
              resources: {limits: {cpu: 100m, memory: 32Mi}}
              securityContext:
                runAsNonRoot: true
                runAsUser: 10001
                readOnlyRootFilesystem: true
                allowPrivilegeEscalation: false
                capabilities: {drop: [ALL]}
    """)
    return pod


def complaints(pod: dict[str, Any]) -> list[str]:
    return list(broken_in_manifest("container/x", {"localhost/x-y:1"}, yaml.safe_dump(pod)))


def put(*path: str | int, value: Any = None) -> Callable[[dict[str, Any]], None]:
    """Return a change that sets what is at `path`, or takes it away if there is no value."""

    def change(pod: dict[str, Any]) -> None:
        place: Any = pod
        for step in path[:-1]:
            place = place[step]
        if value is None:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


X = ("spec", "containers", 0)


def test_a_sound_manifest_passes() -> None:
    """The manifest that the next test breaks in one place at a time breaks no rule."""
    assert complaints(sound()) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put("spec", "restartPolcy", value="Never"), "restartPolcy"),
        (put(*X, "livenesProbe", value={}), "livenesProbe"),
        (put("spec", "terminationGracePeriodSeconds", value="5 s"), "terminationGracePeriodSeconds"),
        (put("spec", "automountServiceAccountToken"), "token of a service account"),
        (put("spec", "terminationGracePeriodSeconds"), "how long it may take to end"),
        (put("spec", "hostNetwork", value=True), "namespace with its host"),
        (put("spec", "volumes", value=[{"name": "v", "hostPath": {"path": "/etc"}}]), "folder of its host"),
        (put(*X, "image", value="localhost/x-y:latest"), "not among localhost/x-y:1"),
        (put(*X, "image", value="docker.io/library/python:3.12"), "not among"),
        (put(*X, "imagePullPolicy"), "imagePullPolicy Never"),
        (put(*X, "livenessProbe"), "# no probe: "),
        (put(*X, "resources"), "limits of cpu and memory"),
        (put(*X, "resources", "limits", "cpu"), "limits of cpu and memory"),
        (put(*X, "ports", value=[{"containerPort": 80, "hostPort": 80}]), "port of its host"),
        (put(*X, "securityContext"), "runAsNonRoot None"),
        (put(*X, "securityContext", "runAsNonRoot", value=False), "runAsNonRoot False"),
        (put(*X, "securityContext", "runAsUser", value=1000), "want 10000 or more"),
        (put(*X, "securityContext", "runAsUser"), "want 10000 or more"),
        (put(*X, "securityContext", "readOnlyRootFilesystem"), "readOnlyRootFilesystem None"),
        (put(*X, "securityContext", "allowPrivilegeEscalation", value=True), "allowPrivilegeEscalation True"),
        (put(*X, "securityContext", "capabilities", "add", value=["NET_RAW"]), "capabilities"),
        (put(*X, "securityContext", "privileged", value=True), "is privileged"),
    ],
)
def test_rule_rejects_a_manifest_that_breaks_it(
    change: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    """Each rule, given a manifest that breaks it, says so, in a Deployment's template too."""
    pod = sound()
    change(pod)
    assert complaint in "\n".join(complaints(pod))
    if complaint not in {"# no probe: "}:
        labels = {"app": "x"}
        template = {"metadata": {"labels": labels}, "spec": copy.deepcopy(pod["spec"])}
        spec = {"selector": {"matchLabels": labels}, "template": template}
        deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": spec}
        assert complaint in "\n".join(complaints(deployment))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("FROM docker.io/library/python:3.12-slim\nUSER 10001\n", "the ground that all share"),
        (GROUND.replace("&& rm -r /wheels", ""), "the ground that all share"),
        (GROUND + "FROM docker.io/library/nginx:1 AS web\nUSER 10001\n", "web is built on"),
        (GROUND + "FROM ground AS web\nUSER 0\n", "web runs as 0"),
        (GROUND + "FROM ground AS web\nUSER root\n", "web runs as root"),
        (GROUND + "FROM ground AS web\nUSER 10001\nFROM web AS two\nUSER 0:0\n", "two runs as 0:0"),
        (GROUND + "FROM ${BASE} AS web\nCOPY a b\n", "web runs as 0"),
        (GROUND + "FROM ground AS web\nADD http://x/y z\n", "ADD fetches"),
    ],
)
def test_rule_rejects_a_containerfile_that_breaks_it(text: str, complaint: str) -> None:
    """Each rule, given a Containerfile that breaks it, says so."""
    assert complaint in "\n".join(broken_in_containerfile(text))
