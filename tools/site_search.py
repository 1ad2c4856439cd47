"""What a reader in trouble types, in the search index: aka and symptoms, where they outweigh mere mention.

The words of a symptom ("Redis", "down", "timeout") stand on most pages. Only one page promises the whole
sentence, so its names and symptoms become a field of their own in the index; the index calls it tags.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tools.catalogue import Catalogue

__all__ = ["promise"]

BOOST = 12.0


def promise(path: Path, catalogue: Catalogue) -> None:
    """Add to each pattern's entry in the index at `path` what its front matter promises to be found by."""
    index: dict[str, Any] = json.loads(path.read_text("utf-8"))
    index["config"]["fields"]["tags"]["boost"] = BOOST
    for entry in index["docs"]:
        pattern = catalogue.patterns.get(entry["location"].removesuffix("/"))
        if pattern is not None:
            entry["tags"] = [*pattern.aka, *pattern.symptoms]
        else:
            entry.pop("tags", None)
    path.write_text(json.dumps(index, ensure_ascii=False, separators=(",", ":")), "utf-8")
