"""The services that an application may call, and which server of one a request goes to.

>>> shards = ("http://a:80", "http://b:80", "http://c:80")
>>> [ranked(customer, shards)[0] for customer in (b"ada", b"grace", b"alan")]
['http://a:80', 'http://c:80', 'http://b:80']

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998): the highest random
weight. Where a shard is added, only the keys that now rank it first move, and no ring is kept anywhere.
"""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from patterns.bounds import text, whole
from patterns.container.ambassador.events import ProxyError, Refused
from patterns.container.ambassador.policy import Policy

try:
    from yarl import URL
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"patterns.container.ambassador needs {error.name}: pip install executable-patterns[container]"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterns.pipeline import Guard

__all__ = ["Header", "Segment", "Upstream", "key_of", "ranked", "read"]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


# --8<-- [start:ranked]
def ranked(key: bytes, shards: Sequence[str]) -> list[str]:
    """Return `shards`, the one that `key` belongs to first: the same in every process and at every start."""
    digest = blake2b(key, digest_size=16).digest()
    return sorted(shards, key=lambda shard: blake2b(shard.encode(), key=digest, digest_size=8).digest())


# --8<-- [end:ranked]


@dataclass(frozen=True, slots=True)
class Header:
    """The shard's key is the value of a header."""

    name: str

    def __post_init__(self) -> None:
        if not _TOKEN.fullmatch(self.name):
            raise ValueError(f"name must be the name of a header, got {self.name!r}")


@dataclass(frozen=True, slots=True)
class Segment:
    """The shard's key is a segment of the path behind the upstream's name; the first is 1."""

    number: int

    def __post_init__(self) -> None:
        whole("number", self.number, at_least=1)


def key_of(shard_by: Header | Segment, target: str, raw: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the shard's key of a request.

    Raises:
        Refused: the header is not there exactly once, or the path is too short; or what is there is empty.
    """
    if isinstance(shard_by, Header):
        wanted = shard_by.name.lower().encode()
        found = [value for name, value in raw if name.lower() == wanted]
        where = f"the header {shard_by.name}, once,"
    else:
        found = [each.encode() for each in target.partition("?")[0].split("/")[shard_by.number :][:1]]
        where = f"segment {shard_by.number} of the path"
    if len(found) != 1 or not found[0]:
        raise Refused(ProxyError.REQUEST, 400, f"{where} says which shard is asked")
    return found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One service that the application may call.

    Attributes:
        name: the first segment of the paths that lead to it.
        origins: its servers, each "http://host:port" or "https://host:port" and nothing more. A shard is
            known by its origin: take names that outlive machines.
        shard_by: where a request's key is, if each server has its own share of the keys; None if they are
            replicas of which any will do.
        ca_file: certificates that may sign for its servers; None takes those of the system.
        guard: anything with a `call`, a circuit breaker for instance, around each attempt.
        policy: sizes and times.
    """

    name: str
    origins: tuple[str, ...]
    shard_by: Header | Segment | None = None
    ca_file: str | None = None
    guard: Guard | None = None
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name must be 1 to 63 of a-z, 0-9 and -, got {self.name!r}")
        object.__setattr__(self, "origins", tuple(self.origins))
        if not self.origins or len(set(self.origins)) != len(self.origins):
            raise ValueError(f"origins must be at least one, each once, got {self.origins!r}")
        for origin in self.origins:
            _check_origin(origin)
        if self.ca_file is not None and not all(origin.startswith("https:") for origin in self.origins):
            raise ValueError("ca_file must be None unless every origin is https")

    def trust(self) -> ssl.SSLContext:
        """Return whom to believe: the certificate must be signed, in date, and of the host's name."""
        return ssl.create_default_context(cafile=self.ca_file)


def read(given: str) -> list[Upstream]:
    """Return the upstreams that a JSON text describes, name by name.

    Each has "origins", and may have "shard_by" ("header:NAME" or "segment:NUMBER"), "ca_file" and "policy".

    Raises:
        ValueError: it is no such text; the message says where.
    """
    try:
        found = json.loads(given)
    except ValueError as error:
        raise ValueError(f"upstreams must be JSON: {error}") from None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"upstreams must be an object with at least one name, got {type(found).__name__}")
    return [_upstream(name, _known(name, each, _KEYS)) for name, each in found.items()]


_KEYS = {"origins", "shard_by", "ca_file", "policy"}


def _upstream(name: str, given: dict[str, Any]) -> Upstream:
    policy = _known(f"{name}.policy", given.get("policy", {}), {each.name for each in fields(Policy)})
    origins = given.get("origins")
    if not isinstance(origins, list):
        raise ValueError(f"{name}.origins must be a list, got {type(origins).__name__}")
    return Upstream(
        name=name,
        origins=tuple(origins),
        shard_by=_shard_by(name, given.get("shard_by")),
        ca_file=given.get("ca_file"),
        policy=Policy(**policy),
    )


def _shard_by(name: str, given: object) -> Header | Segment | None:
    if given is None:
        return None
    kind, _, rest = text(f"{name}.shard_by", given).partition(":")
    if kind == "header":
        return Header(rest)
    if kind == "segment" and re.fullmatch(r"[0-9]{1,3}", rest):
        return Segment(int(rest))
    raise ValueError(f"{name}.shard_by must be header:NAME or segment:NUMBER, got {given!r}")


def _known(where: str, given: object, keys: set[str]) -> dict[str, Any]:
    if not isinstance(given, dict) or (strange := set(given) - keys):
        strangers = f"{sorted(strange)} in it" if isinstance(given, dict) else type(given).__name__
        raise ValueError(f"{where} must be an object of {sorted(keys)}, got {strangers}")
    return given


def _check_origin(origin: object) -> None:
    try:
        url = URL(origin) if isinstance(origin, str) else URL()
        if url.scheme in {"http", "https"} and str(url.origin()) == origin:
            return
    except ValueError:
        pass
    # Not shown: it may hold a password.
    raise ValueError("origins must each be http[s]://host[:port], in lower case, with nothing behind")
