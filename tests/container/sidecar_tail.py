"""The model of `Tail`: a writer, rotations and a reader that restarts, against the list of all lines."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from patterns.container.sidecar import Line, Tail
from tests.container.sidecar_ground import Log


class TailMachine(RuleBasedStateMachine):
    """A writer, rotations and a reader that restarts, against the list of all lines."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.log = Log(Path(folder, "app.log"), backups=3)
        self.tail = Tail(self.log.path, longest=1000)
        self.partial = b""
        self.seen: list[Line] = []
        self.gaps = 0

    @rule(count=st.integers(1, 30))
    def write(self, count: int) -> None:
        self.end_partial()
        self.log.write(count)

    @rule()
    def write_a_part(self) -> None:
        if not self.partial:
            self.partial = b"line %d" % (len(self.log.lines) + 1)
            self.log.open.write(self.partial)

    @rule()
    def end_partial(self) -> None:
        if self.partial:
            self.log.open.write(b"\n")
            self.finish_partial()

    def finish_partial(self) -> None:
        if self.partial:
            self.log.lines.append(self.partial)
            self.partial = b""

    @rule()
    def rotate(self) -> None:
        """RotatingFileHandler; a part of a line becomes a line when its file is left."""
        self.finish_partial()
        self.log.rotate()

    @rule(count=st.integers(0, 5))
    def logrotate(self, count: int) -> None:
        """The new file is there, and the writer goes on in the old one until it is told."""
        self.end_partial()
        self.log.rename()
        new = self.log.path.open("ab", buffering=0)
        self.read(most=1)
        self.log.write(count)
        self.log.open.close()
        self.log.open = new

    @rule(most=st.integers(1, 40))
    def read(self, most: int) -> None:
        lines = self.tail.read(most)
        assert len(lines) <= most
        self.seen += lines

    @rule()
    def read_all(self) -> None:
        while lines := self.tail.read(10):
            self.seen += lines

    @rule()
    def restart(self) -> None:
        """A new reader goes on after the last line that the old one handed out."""
        self.gaps += self.tail.gaps
        self.tail.close()
        self.tail = Tail(self.log.path, self.seen[-1].after if self.seen else None, longest=1000)

    @rule()
    def end_and_begin_again(self) -> None:
        """Both end: what is there of a line is shipped as one, and the next writer goes on behind it."""
        self.read_all()
        if last := self.tail.last():
            assert [line.text for line in last] == [self.partial or self.log.lines[-1]]
            self.seen += last
            self.finish_partial()
        self.restart()

    @rule()
    def close_and_go_on(self) -> None:
        self.tail.close()

    @rule()
    def cut(self) -> None:
        """copytruncate, seen in time: what was not read is gone, and is a gap."""
        self.end_partial()
        self.read_all()
        if self.log.path.stat().st_size:
            before = self.tail.gaps
            os.truncate(self.log.path, 0)
            self.read_all()
            assert self.tail.gaps == before + 1
            self.write(1)
            self.read_all()

    @invariant()
    def lines_are_in_order_and_once(self) -> None:
        numbers = [int(line.text.split()[1]) for line in self.seen]
        assert all(before < after for before, after in itertools.pairwise(numbers))
        assert [line.after.seq for line in self.seen] == list(range(1, len(self.seen) + 1))
        assert {line.text for line in self.seen} <= {*self.log.lines, self.partial}

    @invariant()
    def what_is_missing_is_a_gap(self) -> None:
        if self.gaps + self.tail.gaps == 0:
            begin = self.log.lines.index(self.seen[0].text) if self.seen else 0
            assert [line.text for line in self.seen] == self.log.lines[begin : begin + len(self.seen)]

    def teardown(self) -> None:
        try:
            self.write(1)
            self.read_all()
            seen = {line.text for line in self.seen}
            for path in self.log.path.parent.iterdir():
                lines = re.findall(rb"line \d+", path.read_bytes())  # two of them may share a line's end
                assert set(lines) <= seen, f"{path.name} was not read to its end"
        finally:
            self.tail.close()
            self.log.open.close()
            self.stack.close()
