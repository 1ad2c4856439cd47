"""Writes a configuration file over and over, in place or by replacing it, and stands still in each write.

Arguments: in_place|replaced, path.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    kind, target = sys.argv[1], Path(sys.argv[2])
    text = json.dumps({"version": 2, "limits": list(range(100))})
    path = target if kind == "in_place" else target.with_suffix(".new")
    with path.open("w", encoding="utf-8") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        print("in the write")
        if sys.argv[3:] == ["hold"]:
            signal.pause()
        file.write(text[len(text) // 2 :])
        file.flush()
        os.fsync(file.fileno())
    if kind == "replaced":
        path.replace(target)
