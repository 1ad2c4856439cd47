"""Says what it is told to say, then does what it is told to do.

Arguments: words to print, a line each; then one of: wait (for a signal), exit, raise, nest (start another
worker, pause it, say its process id, wait).
"""

from __future__ import annotations

import signal
import sys

from tests.faults.workers import worker

if __name__ == "__main__":
    *words, last = sys.argv[1:]
    for word in words:
        print(word)
    if last == "wait":
        signal.pause()
    if last == "raise":
        raise RuntimeError("as told")
    if last == "nest":
        with worker("tests.faults.programs.talker", "wait") as inner:
            inner.stop()
            print("nested", inner.pid)
            signal.pause()
