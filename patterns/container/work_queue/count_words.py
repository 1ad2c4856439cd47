"""An application: counts the words of one file. It knows its file, its exit code and nothing of any queue."""

import json
import os
import sys
from pathlib import Path


def main() -> int:
    """Write lines, words and bytes of the item; 2 if it is not text."""
    item = Path(os.environ["WORK_ITEM_FILE"]).read_bytes()
    try:
        text = item.decode()
    except UnicodeDecodeError as error:
        print(f"not text: {error}", file=sys.stderr)  # noqa: T201  what a program says
        return 2
    found = json.dumps({"lines": text.count("\n"), "words": len(text.split()), "bytes": len(item)})
    if folder := os.environ.get("OUTPUT"):
        # Named after the item and whole or not there: done twice, it is done once.
        target = Path(folder, os.environ["WORK_ITEM_ID"])
        fresh = target.with_suffix(f".{os.getpid()}")
        fresh.write_text(found)
        fresh.replace(target)
    print(found)  # noqa: T201  what a program says
    return 0


if __name__ == "__main__":
    sys.exit(main())
