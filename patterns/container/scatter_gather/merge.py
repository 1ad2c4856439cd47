"""The best k of all shards, from the best k of each; and a refusal where that cannot be known.

Each shard sorts its own hits. The best k of all are among the best k of each, whichever way they are spread;
a shard that was asked for fewer may hold one back that belongs in the answer.

>>> east = Page((Hit(9.0, "a"), Hit(8.0, "b")), more=True)
>>> west = Page((Hit(1.0, "c"),))
>>> [hit.id for hit in top_k({"east": east, "west": west}, 2)]
['a', 'b']
>>> try:
...     top_k({"east": east, "west": west}, 3)
... except TruncatedShard as refusal:
...     print(str(refusal)[:49])
shard 'east' has more than the 2 hits it sent, an

Source: Fagin, Lotem and Naor, "Optimal aggregation algorithms for middleware" (what bounds the unseen).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patterns.bounds import whole

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Hit", "Page", "TruncatedShard", "best_of", "top_k"]


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that was found; a higher score is better, and of equal ones the lower id comes first."""

    score: float
    id: str

    @property
    def rank(self) -> tuple[float, str]:
        """What hits are sorted by."""
        return (-self.score, self.id)


@dataclass(frozen=True, slots=True)
class Page:
    """The best hits of one shard, best first, and whether it has more than these."""

    hits: tuple[Hit, ...] = ()
    more: bool = False


class TruncatedShard(Exception):
    """A shard held hits back, some of which may belong in the answer.

    Attributes:
        shard: its name.
        sent: the hits that it sent.
        k: how many were wanted.
    """

    def __init__(self, shard: str, sent: int, k: int) -> None:
        super().__init__(shard, sent, k)
        self.shard, self.sent, self.k = shard, sent, k

    def __str__(self) -> str:
        return (
            f"shard {self.shard!r} has more than the {self.sent} hits it sent, and they may be among the "
            f"best {self.k}: ask each shard for {self.k}"
        )


# --8<-- [start:top_k]
def top_k(pages: Mapping[str, Page], k: int) -> list[Hit]:
    """Return the best `k` hits of all shards; the order in which shards answered makes no difference.

    Raises:
        TruncatedShard: a shard has unseen hits, and its last seen one is better than the k-th of all.
    """
    whole("k", k, at_least=1)
    order = sorted({hit for page in pages.values() for hit in page.hits}, key=lambda hit: hit.rank)
    best = _one_of_each(order)[:k]
    for shard, page in sorted(pages.items()):
        # What a shard holds back ranks after the last hit that it sent, and so after the k-th of all.
        if page.more and not (page.hits and len(best) == k and page.hits[-1].rank >= best[-1].rank):
            raise TruncatedShard(shard, len(page.hits), k)
    return best


# --8<-- [end:top_k]


def best_of(hits: list[Hit], k: int) -> Page:
    """Return the page that a shard with these hits sends to who wants `k`."""
    best = heapq.nsmallest(k + 1, hits, key=lambda hit: hit.rank)
    return Page(tuple(best[:k]), more=len(best) > k)


def _one_of_each(order: list[Hit]) -> list[Hit]:
    """Keep the best hit of each id: a document may be moving from one shard to another."""
    seen: dict[str, Hit] = {}
    for hit in order:
        seen.setdefault(hit.id, hit)
    return list(seen.values())
