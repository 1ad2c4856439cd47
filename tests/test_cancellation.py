"""Proof of patterns/cancellation.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from patterns.cancellation import cancels, made_of_cancellation, overtaken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def refused() -> None:
    raise ConnectionRefusedError


async def translates() -> None:
    try:
        await forever()
    except asyncio.CancelledError:
        raise ConnectionError("closed") from None


async def translates_twice() -> None:
    try:
        await translates()
    except ConnectionError as error:
        raise OSError("lost") from error


async def in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(translates())
        group.create_task(translates())


async def fails_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(refused())
        group.create_task(forever())


async def group_made_one_error() -> None:
    try:
        await fails_in_a_group()
    except ExceptionGroup:
        raise ConnectionError("one of them") from None


async def times_out() -> None:
    async with asyncio.timeout(0.001):
        await forever()


async def ending(work: Callable[[], Awaitable[None]], *, cancel: bool) -> tuple[BaseException, bool]:
    """What `work` ends with, and whether that is told to be a cancellation."""
    found: list[tuple[BaseException, bool]] = []

    async def main() -> None:
        before = cancels()
        try:
            await work()
        except BaseException as error:
            found.append((error, overtaken(error, before)))

    task = asyncio.ensure_future(main())
    for _ in range(3):
        await asyncio.sleep(0)
    if cancel:
        task.cancel()
    await asyncio.wait((task,))
    return found[0]


@pytest.mark.parametrize("work", [translates, translates_twice, in_a_group, forever])
async def test_what_was_made_of_a_cancellation_is_seen(work: Callable[[], Awaitable[None]]) -> None:
    """However it was wrapped, an error that took the place of a cancellation is told as one."""
    error, told = await ending(work, cancel=True)
    assert told, error
    assert isinstance(error, asyncio.CancelledError) == (work is forever)


@pytest.mark.parametrize("work", [refused, fails_in_a_group, group_made_one_error, times_out])
async def test_an_error_of_its_own_is_none(work: Callable[[], Awaitable[None]]) -> None:
    """A task group that fails cancels its other tasks, and a time-out its own body: nobody was cancelled."""
    error, told = await ending(work, cancel=False)
    assert not told, error
    assert not made_of_cancellation(error)


async def test_the_count_alone_would_be_wrong() -> None:
    """In one task: after a failed group an error is an error, whatever the count of this Python says."""
    before = cancels()
    with pytest.raises(ConnectionError) as caught:
        await group_made_one_error()
    assert not overtaken(caught.value, before)
    with pytest.raises(ConnectionRefusedError) as later:
        await refused()
    assert not overtaken(later.value, before)


def test_outside_of_a_task_nothing_is_cancelled() -> None:
    """Without an event loop the count is 0."""
    assert cancels() == 0
    assert not made_of_cancellation(None)
