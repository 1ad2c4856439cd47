"""Another application: a picture of 8 x 8 characters for any bytes, so that people see when they differ."""

import hashlib
import os
import sys
from pathlib import Path


def main() -> int:
    """Write the picture."""
    digest = hashlib.sha256(Path(os.environ["WORK_ITEM_FILE"]).read_bytes()).digest()
    rows = ["".join(" .:-=+*#"[byte >> 5] for byte in digest[row * 4 : row * 4 + 4]) for row in range(8)]
    picture = "\n".join(row + row[::-1] for row in rows)
    if folder := os.environ.get("OUTPUT"):
        target = Path(folder, os.environ["WORK_ITEM_ID"])
        fresh = target.with_suffix(f".{os.getpid()}")
        fresh.write_text(picture)
        fresh.replace(target)
    print(picture)  # noqa: T201  what a program says
    return 0


if __name__ == "__main__":
    sys.exit(main())
