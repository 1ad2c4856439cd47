"""What a caller of a read-through cache may have to catch, besides those of Cache-Aside and its own loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NotAllLoaded", "NotReturned", "ReentrantLoad"]


class NotReturned(LookupError):
    """`load_all` said nothing of a key it was asked for: neither a value, nor None, nor an error.

    Attributes:
        key: what it was asked for.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"load_all returned nothing for {self.key!r}: None would say that it does not exist"


class ReentrantLoad(RuntimeError):
    """A load asked its own cache, and would have waited for itself.

    Attributes:
        key: what it asked for.
        loading: what it was to load.
    """

    def __init__(self, key: str, loading: tuple[str, ...]) -> None:
        super().__init__(key, loading)
        self.key, self.loading = key, loading

    def __str__(self) -> str:
        return f"the load of {_named(self.loading)} asked its own cache for {self.key!r}"


# --8<-- [start:not_all]
class NotAllLoaded(ExceptionGroup[Exception]):
    """Some of the keys could not be loaded; the others were, and are kept.

    It is a group of the errors, each of them once: `except* ConnectionError` works.

    Attributes:
        values: what was found or loaded, in the order asked.
        errors: the error of each other key.
    """

    values: dict[str, Any]
    errors: dict[str, Exception]

    # --8<-- [end:not_all]

    def __new__(cls, values: dict[str, Any], errors: dict[str, Exception]) -> Self:
        """Make the group."""
        text = f"{len(errors)} of {len(values) + len(errors)} keys could not be loaded: {_named(errors)}"
        self = super().__new__(cls, text, list({id(error): error for error in errors.values()}.values()))
        self.values, self.errors = values, errors
        return self

    def __init__(self, values: dict[str, Any], errors: dict[str, Exception]) -> None:  # noqa: ARG002  __new__ has them
        super().__init__(self.message, self.exceptions)  # no values in `args`, which logs show

    def derive(self, errors: Sequence[Exception], /) -> ExceptionGroup[Exception]:  # type: ignore[override]  # of typeshed's overloads
        """Return a part of the group, for `except*`."""
        return ExceptionGroup(self.message, errors)

    def __reduce__(self) -> tuple[type[NotAllLoaded], tuple[dict[str, Any], dict[str, Exception]]]:
        return type(self), (self.values, self.errors)


_SHOWN = 3


def _named(keys: Any) -> str:
    names = [repr(key) for key in keys]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
