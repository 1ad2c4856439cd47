"""Reads the lines of a log that another process writes and rotates, and knows where it is.

The writer is left alone: its files are opened for reading only and never locked. Rotation is understood as
`logging.handlers.RotatingFileHandler` and logrotate do it without `copytruncate`: `app.log` becomes
`app.log.1`, which becomes `app.log.2`, and so on, uncompressed. A file is known by its inode and its first
line, so that a position outlives a restart of the reader, a renaming, and an inode that is used again.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Line", "Position", "Tail"]

_CHUNK = 65_536
_HEAD = 256  # bytes of its first line that a file is known by
_Inode = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two lines.

    Attributes:
        seq: how many lines came before it, ever.
        file: identity of the file, "" before the first line.
        offset: bytes of that file before it.
    """

    seq: int = 0
    file: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its line end, and the position after it; `after.seq` is its number, from 1."""

    text: bytes
    after: Position


class Tail:
    """Follows one log through its rotations.

    Args:
        path: the file that is being written; neither it nor its folder need exist yet.
        start: where to go on, from `Line.after`; the default is the beginning of the oldest file.
        longest: bytes that are kept of a line; what is beyond is cut off, and the line still counts once.

    Attributes:
        gaps: how often it could not tell whether it has seen every line: its file was gone, or was cut.
    """

    def __init__(self, path: Path, start: Position | None = None, *, longest: int = 16_384) -> None:
        self._path = path
        self._longest = longest
        self._at = start or Position()
        self._file: BinaryIO | None = None
        self._identity = ""  # of the open file, once its first line is whole
        self._next: BinaryIO | None = None  # the file after it, held so that a rotation cannot take it away
        self._read = 0  # bytes of the open file that have been read
        self._lines: deque[tuple[bytes, int]] = deque()  # read and not handed out; where each ends
        self._rest = b""  # the beginning of a line whose end has not been written yet
        self.gaps = 0

    @property
    def endangered(self) -> bool:
        """Whether a rotation has deleted the open file: soon nobody knows what came after the next one."""
        return self._file is not None and os.fstat(self._file.fileno()).st_nlink == 0

    # --8<-- [start:read]
    def read(self, most: int) -> list[Line]:
        """Return up to `most` lines that have been written since; it never waits."""
        self._look_ahead()
        lines: list[Line] = []
        while len(lines) < most:
            if self._lines:
                text, end = self._lines.popleft()
                self._at = Position(self._at.seq + 1, self._identity, end)
                lines.append(Line(text, self._at))
            elif self._file is None:
                if not self._open_where_it_was():
                    break
            elif not self._load() and not self._go_on():
                break
        return lines

    # --8<-- [end:read]

    def last(self) -> list[Line]:
        """Return, when `read` finds nothing more, what is there of a line whose end was never written.

        A file's first line is left until it is whole, for the file is known by it.
        """
        if not (self._rest and self._identity):
            return []
        text, self._rest = self._rest, b""
        self._at = Position(self._at.seq + 1, self._identity, self._read)
        return [Line(text, self._at)]

    def close(self) -> None:
        """Close the files; `read` opens them again where it was."""
        for file in (self._file, self._next):
            if file is not None:
                file.close()
        self._file = self._next = None
        self._lines.clear()

    def _load(self) -> bool:
        """Read on in the open file; False at its end."""
        assert self._file is not None  # noqa: S101  read() has opened it
        chunk = self._file.read(_CHUNK)
        end = self._read
        self._read += len(chunk)
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            end += len(part) + 1
            self._lines.append(((self._rest + part)[: self._longest], end))
            self._rest = b""
        self._rest = (self._rest + rest)[: self._longest]
        if whole and not self._identity:
            self._identity = _identity(self._file)
        return bool(chunk)

    # --8<-- [start:go_on]
    def _go_on(self) -> bool:
        """At the end of the open file: go on in the next; False if there is nothing to read now."""
        assert self._file is not None  # noqa: S101  read() has opened it
        if os.fstat(self._file.fileno()).st_size < self._read:  # cut in place
            self.gaps += 1
            self._begin(self._file)
            return True
        if self._next is None or not self._written_after(self._next):
            return False
        if os.fstat(self._file.fileno()).st_size > self._read:
            return True  # written before the writer went over
        if self._rest:  # its writer ended in the middle of a line
            self._identity = self._identity or _identity(self._file)
            self._lines.append((self._rest, self._read))
            self._rest = b""
            return True
        self._file.close()
        following, self._next = self._next, None
        self._begin(following)
        return True

    def _written_after(self, following: BinaryIO) -> bool:
        """Whether something is in the file `following` or in a later one.

        There is one writer, so that the file before is complete then. Not earlier: after a rotation by
        logrotate the writer goes on in the old file until it is told.
        """
        status = os.fstat(following.fileno())
        files = self._files()
        inodes = [found.inode for found in files]
        if status.st_size or files != self._files():
            return status.st_size > 0
        if _inode(status) not in inodes:
            return True
        return any(found.size for found in files[inodes.index(_inode(status)) :])

    def _look_ahead(self) -> None:
        """Open the file that follows the open one, as soon as there is one."""
        if self._file is None or self._next is not None:
            return
        files = self._files()
        mine = os.fstat(self._file.fileno())
        inodes = [found.inode for found in files]
        if _inode(mine) in inodes:
            self._next = self._open(files, inodes.index(_inode(mine)) + 1)
        else:  # deleted or moved away: take the oldest that was written after it
            later = (
                number
                for number, found in enumerate(files)
                if found.path == self._path or found.written >= mine.st_mtime_ns
            )
            self._next = self._open(files, next(later, len(files)))
            self.gaps += self._next is not None

    # --8<-- [end:go_on]

    def _open_where_it_was(self) -> bool:
        """Open the file of the position, or else the oldest; False while there is none."""
        files = self._files()
        if self._at.file:
            for number in range(len(files)):
                file = self._open(files, number)
                if file is None:
                    return False
                if _identity(file) == self._at.file and os.fstat(file.fileno()).st_size >= self._at.offset:
                    self._begin(file, self._at.offset)
                    self._identity = self._at.file
                    return True
                file.close()
        oldest = self._open(files, 0)
        if oldest is None:
            return False
        self.gaps += bool(self._at.file)
        self._begin(oldest)
        return True

    def _begin(self, file: BinaryIO, offset: int = 0) -> None:
        file.seek(offset)
        self._file, self._identity, self._read, self._rest = file, "", offset, b""
        self._look_ahead()

    def _open(self, files: list[_Found], number: int) -> BinaryIO | None:
        """Open one of `files`; None if there is none, or names changed meanwhile and `files` is not true."""
        if number >= len(files):
            return None
        try:
            file = files[number].path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        if self._files() == files:
            return file
        file.close()
        return None

    def _files(self) -> list[_Found]:
        """The rotated files and the log itself, oldest first."""
        numbered = []
        with suppress(FileNotFoundError), os.scandir(self._path.parent) as entries:
            for entry in entries:
                suffix = entry.name.removeprefix(f"{self._path.name}.")
                if suffix != entry.name and suffix.isdecimal():
                    numbered.append((int(suffix), self._path.with_name(entry.name)))
        found = []
        for path in [*(path for _, path in sorted(numbered, reverse=True)), self._path]:
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append(_Found(path, _inode(status), status.st_size, status.st_mtime_ns))
        return found


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    inode: _Inode
    size: int = field(compare=False)
    written: int = field(compare=False)  # ns, wall clock


def _inode(status: os.stat_result) -> _Inode:
    return status.st_dev, status.st_ino


def _identity(file: BinaryIO) -> str:
    """Return inode and digest of the first line, or of what is taken of it."""
    head = os.pread(file.fileno(), _HEAD, 0).partition(b"\n")[0]
    return f"{os.fstat(file.fileno()).st_ino:x}-{hashlib.blake2b(head, digest_size=8).hexdigest()}"
