"""A part of the documents, and its search: what stands for your index.

>>> shard = Shard({"a": "red hat, red shoes", "b": "green hat", "c": "red wine"})
>>> [hit.id for hit in shard.search("red", 1).hits], shard.search("red", 1).more
(['a'], True)
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING
from zlib import crc32

from patterns.container.scatter_gather.merge import Hit, Page, best_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Shard", "documents_of", "part_of"]


class Shard:
    """Documents that can be searched by words.

    Args:
        documents: text by id.
    """

    def __init__(self, documents: Mapping[str, str]) -> None:
        self._words = {id_: Counter(_words(text)) for id_, text in documents.items()}

    def search(self, query: str, k: int) -> Page:
        """Return the `k` documents in which the words of `query` stand most often."""
        wanted = set(_words(query))
        scores = ((sum(words[each] for each in wanted), id_) for id_, words in self._words.items())
        return best_of([Hit(float(score), id_) for score, id_ in scores if score], k)


def documents_of(text: str) -> dict[str, str]:
    """Read documents, one a line: `id: words`.

    Raises:
        ValueError: a line has no id, or one that another has.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        id_, colon, words = line.partition(":")
        if not line.strip():
            continue
        if not colon or not id_.strip() or id_.strip() in found:
            raise ValueError(f"line {number} of the documents must be `id: words`, each id once")
        found[id_.strip()] = words.strip()
    return found


def part_of(documents: Mapping[str, str], number: int, of: int) -> dict[str, str]:
    """Return those documents that shard `number` of `of` shards has: each is in exactly one."""
    return {id_: text for id_, text in documents.items() if crc32(id_.encode()) % of == number}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
