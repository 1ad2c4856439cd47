"""Proof that every level answers as the primary does: to be run in a test, before the outage does it.

Source: Robinson, "Consumer-Driven Contracts"; the levels are providers, and the primary is the contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from patterns.resiliency.fallback import Fallback

__all__ = ["ContractBroken", "differences", "same_contract"]

T = TypeVar("T")


class ContractBroken(AssertionError):
    """Some level does not answer as the primary does.

    Attributes:
        differences: one sentence each; values are not shown.
    """

    def __init__(self, differences: tuple[str, ...]) -> None:
        super().__init__(differences)
        self.differences = differences

    def __str__(self) -> str:
        return "\n".join(self.differences)


# --8<-- [start:contract]
async def same_contract(
    fallback: Fallback[T],
    primary: Callable[..., Awaitable[T]],
    cases: Iterable[tuple[Any, ...]],
    *,
    check: Callable[[T], object] | None = None,
) -> None:
    """Ask the primary and then every level for each case, and compare the types that they return.

    Types are compared through dataclasses, mappings (their keys, too), lists, tuples and sets.

    Args:
        fallback: the chain; its memories are fed with the primary's answers, as in production.
        primary: what it stands in for; it must answer each case.
        cases: positional arguments, one tuple a case; at least one.
        check: is given every value, and raises where it is not as the contract says: for bounds and formats
            that a type does not show.

    Raises:
        ContractBroken: a level did not answer, or answered with another shape, or `check` raised.
        ValueError: there are no cases.
    """
    asked, found = 0, []
    for args in cases:
        asked += 1
        wanted = await primary(*args)
        if check is not None:
            check(wanted)
        for level in fallback.levels:
            if level.memory is not None:
                await level.memory.keep(wanted, 0.0, args, {})
            try:
                value = (await fallback.ask(level.name, *args)).value
                if check is not None:
                    check(value)
            except Exception as error:
                found.append(f"{level.name}, case {asked}: raised {type(error).__name__}: {error}")
            else:
                found += [f"{level.name}, case {asked}: {text}" for text in differences(wanted, value)]
    if not asked:
        raise ValueError("cases must hold at least one tuple of arguments: without one nothing is proved")
    if found:
        raise ContractBroken(tuple(found))


# --8<-- [end:contract]


def differences(wanted: object, value: object, at: str = "the result") -> Iterator[str]:
    """Say where the shape of `value` is not that of `wanted`."""
    if type(value) is not type(wanted):
        yield f"{at} is {type(value).__name__}, not {type(wanted).__name__}"
    elif isinstance(wanted, Mapping) and isinstance(value, Mapping):
        if missing := [key for key in wanted if key not in value]:
            yield f"{at} lacks the keys {missing!r}"
        if more := [key for key in value if key not in wanted]:
            yield f"{at} has the keys {more!r} besides"
        for key in wanted:
            if key in value:
                yield from differences(wanted[key], value[key], f"{at}[{key!r}]")
    elif isinstance(wanted, list | tuple | set | frozenset) and isinstance(
        value, list | tuple | set | frozenset
    ):
        if isinstance(wanted, tuple) and hasattr(wanted, "_fields") and isinstance(value, tuple):
            for name, left, right in zip(wanted._fields, wanted, value, strict=True):
                yield from differences(left, right, f"{at}.{name}")
        elif wanted and value:
            kinds = {type(item) for item in wanted}
            if other := {type(item).__name__ for item in value if type(item) not in kinds}:
                yield f"{at} holds {', '.join(sorted(other))}"
            else:
                for item in value:
                    like = next(each for each in wanted if type(each) is type(item))
                    yield from differences(like, item, f"an item of {at}")
    elif is_dataclass(wanted) and not isinstance(wanted, type):
        for field in fields(wanted):
            left, right = getattr(wanted, field.name), getattr(value, field.name)
            yield from differences(left, right, f"{at}.{field.name}")
