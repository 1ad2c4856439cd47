"""Fallbacks as most people write them first; each breaks an invariant of patterns/resiliency/fallback."""

from __future__ import annotations

import asyncio
from typing import Any

from patterns.resiliency.fallback import AllLevelsFailed, Answer, ContractBroken, Fallback, Level, Stale
from patterns.resiliency.fallback.shared import SharedLastGood

__all__ = [
    "CatchesEverything",
    "CatchesException",
    "DatesOnArrival",
    "DoesNotAskWhoWasCancelled",
    "ExercisesTheFirstLevel",
    "GivesEachLevelTheWholeTime",
    "KeepsWhateverItGave",
    "LastWriterWins",
    "MustKeep",
    "NeverSpares",
    "PreparesTheSubstitute",
    "RaisesTheLastError",
    "ReturnsPermitsOnSuccess",
    "ServesAnyAge",
    "WithoutLimit",
    "looks_at_the_outermost_type",
]

DOWN = ConnectionError("refused")


class PreparesTheSubstitute(Fallback[Any]):
    """The substitute is an argument, so that it is made before anybody needs it: `orElse(load())`."""

    async def call(self, primary: Any, /, *args: Any, **kwargs: Any) -> Answer[Any]:
        substitute = await self.levels[0].fn(*args, **kwargs)
        try:
            return Answer(await primary(*args, **kwargs), "primary", degraded=False)
        except ConnectionError:
            return Answer(substitute, self.levels[0].name, degraded=True)


class CatchesEverything(Fallback[Any]):
    """`except:` around each of them."""

    async def call(self, primary: Any, /, *args: Any, **kwargs: Any) -> Answer[Any]:
        for name, fn in [("primary", primary), *((each.name, each.fn) for each in self.levels)]:
            try:
                return Answer(await fn(*args, **kwargs), name, name != "primary")
            except self.catches:
                pass
        raise DOWN

    catches: type[BaseException] = BaseException


class CatchesException(CatchesEverything):
    """`except Exception:`, as most code has it."""

    catches = Exception


class DoesNotAskWhoWasCancelled(Fallback[Any]):
    """The listed error is all that counts."""

    async def call(self, primary: Any, /, *args: Any, **kwargs: Any) -> Answer[Any]:
        try:
            return Answer(await primary(*args, **kwargs), "primary", degraded=False)
        except ConnectionError as error:
            return await self._fall_back(error, args, kwargs, 1 << 30)


class KeepsWhateverItGave(Fallback[Any]):
    """`cache.set(key, answer)` after the try, for either branch."""

    async def call(self, primary: Any, /, *args: Any, **kwargs: Any) -> Answer[Any]:
        answer = await super().call(primary, *args, **kwargs)
        for _, memory in self._memories:
            await memory.keep(answer.value, 0.0, args, kwargs)
        return answer


class RaisesTheLastError(Fallback[Any]):
    """The last `except` wins: the caller learns that the spare was broken, and not why it was needed."""

    async def _fall_back(self, error: Exception, *rest: Any) -> Answer[Any]:
        try:
            return await super()._fall_back(error, *rest)
        except AllLevelsFailed as failed:
            raise failed.exceptions[-1] from None


class GivesEachLevelTheWholeTime(Fallback[Any]):
    """The budget begins anew with each level."""

    async def _ask(self, level: Level[Any], until: float | None, *rest: Any) -> Any:
        return await super()._ask(level, self._now() + (self.policy.deadline or 0), *rest)


class WithoutLimit(Fallback[Any]):
    """Levels that let everybody in."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for level in self.levels:
            level.limit = 1 << 30


class ReturnsPermitsOnSuccess(Fallback[Any]):
    """The permit comes back after the await, and not in a `finally`."""

    async def _ask(self, level: Level[Any], until: float | None, *rest: Any) -> Any:
        before = level.running
        try:
            return await super()._ask(level, until, *rest)
        except asyncio.CancelledError:
            level.running = before + 1
            raise


class ServesAnyAge(Fallback[Any]):
    """The copy is marked with its age, and nobody looks at it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for level in self.levels:
            level.max_age = None


async def looks_at_the_outermost_type(fallback: Any, primary: Any, cases: Any) -> None:
    """Ask the levels, and compare what isinstance sees."""
    for args in cases:
        wanted = await primary(*args)
        for level in fallback.levels:
            value = (await fallback.ask(level.name, *args)).value
            if not isinstance(value, type(wanted)):
                kinds = f"{type(value).__name__}, not {type(wanted).__name__}"
                raise ContractBroken((f"{level.name}, case 1: the result is {kinds}",))


class ExercisesTheFirstLevel(Fallback[Any]):
    """Every exercise begins at the top, where somebody always answers."""

    async def _exercised(self, *rest: Any) -> Answer[Any] | None:
        draw = self._rng.randrange
        self._rng.randrange = lambda *_: 0  # type: ignore[method-assign]  # the variant is just that
        try:
            return await super()._exercised(*rest)
        finally:
            self._rng.randrange = draw  # type: ignore[method-assign]  # as above


class LastWriterWins(SharedLastGood[Any]):
    """`SET key value EX ttl`, in whichever order the answers come."""

    async def _set(self, key: str, kind: int, asked: str, data: bytes) -> None:
        await self.client.delete(key)
        await super()._set(key, kind, asked, data)


class DatesOnArrival(SharedLastGood[Any]):
    """The server notes when the copy arrived, and takes that for when it was true."""

    async def _set(self, key: str, kind: int, asked: str, data: bytes) -> None:
        await super()._set(key, kind, "", data)


class NeverSpares(SharedLastGood[Any]):
    """Each call tries Redis, and waits for it, however often it has failed."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Stale[Any]:
        self._failing = False
        return await super().__call__(*args, **kwargs)

    async def keep(self, *args: Any) -> None:
        self._failing, self._quiet_until = False, 0.0
        await super().keep(*args)


class MustKeep(Fallback[Any]):
    """The copy is written as part of the call, and its error is the call's."""

    async def call(self, primary: Any, /, *args: Any, **kwargs: Any) -> Answer[Any]:
        try:
            value = await primary(*args, **kwargs)
        except ConnectionError as error:
            return await self._fall_back(error, args, kwargs, 0)
        memory: Any = self._memories[0][1]
        memory._quiet_until = 0.0
        await memory.keep(value, 0.0, args, kwargs)
        return Answer(value, "primary", degraded=False)
