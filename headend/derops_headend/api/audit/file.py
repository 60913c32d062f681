"""Files of this replica with the records that the database does not have yet, in order.

A segment begins with a line that says where the chain stands; each further line is a hash, a space
and its record. Segments are only appended to. A segment is deleted once all its records are in the
database.
"""

import fcntl
import itertools
import json
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import structlog

from derops.errors import SchemaTooNewError
from derops.files import make_directory, sync
from derops_headend.storage.chain import ChainedRecord, Head, begin, link, read_stored

CHAIN_IDLE = timedelta(days=30)
"""A chain that rested for longer ends: its records may have been dropped since."""

FORMAT = 1
"""The version of the files. A later one that this program could not read says so in the first line
of each segment, as ``readable_from``; what is added there without it is passed over."""

SEGMENT_BYTES = 1024 * 1024
_READ_BYTES = 512 * 1024
_NAME = re.compile(r"audit-(\d{12})\.log")


class FilePosition(NamedTuple):
    """Between two records of the file."""

    segment: int
    offset: int


@dataclass(slots=True)
class _Segment:
    number: int
    path: Path
    before: Head
    """Where the chain stood when it was made."""

    begin: int
    """Bytes of its first line."""

    size: int
    """Bytes that are good and durable."""


class AuditFile:
    """The file: one thread appends, another one reads and trims."""

    def __init__(self, directory: Path, *, replica: str, now: datetime) -> None:
        """Open the files of a directory, or begin them; a torn end is cut off.

        Raises:
            OSError: The directory cannot be used, or another process uses it.
            SchemaTooNewError: It is for newer programs.
        """
        self._directory, self._replica = directory, replica
        self._log = structlog.get_logger("audit")
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._segments: list[_Segment] = []
        self._size = 0
        self.cut_bytes = 0
        """Bytes that opening cut off the end."""
        self.previous: Head | None = None
        """The chain before this one, if opening began another."""
        make_directory(directory)
        self._guard = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.head = self._recover(now)
        except BlockingIOError as error:
            os.close(self._guard)
            problem = f"{directory} is used by another process: each replica needs its own"
            raise OSError(error.errno, problem) from error
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes that the files take."""
        with self._lock:
            return self._size

    def begin(self) -> FilePosition:
        """Return the place before the first record."""
        with self._lock:
            return FilePosition(self._segments[0].number, 0)

    def is_end(self, place: FilePosition) -> bool:
        """Tell whether nothing follows a place."""
        return self._following(place) is None

    def append(self, facts: Sequence[str]) -> list[Head]:
        """Write records; return the head that each made of the chain, once all are durable.

        Raises:
            OSError: None of them is: the disk is full, read only, or broken.
        """
        head, heads, lines = self.head, [], []
        for each in facts:
            body, head = link(head, each)
            heads.append(head)
            lines.append(f"{head.hash} {body}\n")
        if self._descriptor is None:
            self._rotate(self.head)
        self._write("".join(lines).encode("ascii"))
        self.head = head
        if self._segments[-1].size >= SEGMENT_BYTES:
            with suppress(OSError):  # then the old segment grows for longer
                self._rotate(head)
        return heads

    def read(self, place: FilePosition) -> tuple[list[ChainedRecord], FilePosition]:
        """Return some records after a place, and the place after them; the same one = no more."""
        following = self._following(place)
        if following is None:
            return [], place
        segment, offset, size = following
        found, end = _read_lines(segment.path, offset, size)
        return found, FilePosition(segment.number, end)

    def scan(self) -> Iterator[ChainedRecord]:
        """Yield all records, in their order."""
        place, after = None, self.begin()
        while after != place:
            place = after
            found, after = self.read(place)
            yield from found

    def trim(self, place: FilePosition) -> None:
        """Delete segments before a place; all their records are in the database."""
        with self._lock:
            gone = [each for each in self._segments[:-1] if each.number < place.segment]
            self._segments = self._segments[len(gone) :]
            self._size -= sum(segment.size for segment in gone)
        for segment in gone:
            segment.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        self._close_active()
        os.close(self._guard)

    def _following(self, place: FilePosition) -> tuple[_Segment, int, int] | None:
        """Return from where to where reading goes on after a place; None = at the end."""
        with self._lock:
            for segment in self._segments:
                if segment.number < place.segment:
                    continue
                offset = place.offset if segment.number == place.segment else 0
                offset = max(offset, segment.begin)
                if offset < segment.size:
                    return segment, offset, segment.size
        return None

    def _recover(self, now: datetime) -> Head:
        for rest in self._directory.glob("*.new"):
            rest.unlink()
        self._segments = self._find_segments()
        last = _measure_all(self._segments)
        self._size = sum(segment.size for segment in self._segments)
        if not self._segments:
            return self._begin_chain(now, None)
        head = self._segments[-1].before
        if last is not None and last.chain == head.chain and last.seq > head.seq:
            head = Head(*last[:3])
        if last is not None and now - last.at > CHAIN_IDLE:
            return self._begin_chain(now, head)
        self._open_last()
        return head

    def _find_segments(self) -> list[_Segment]:
        found = []
        for path in sorted(self._directory.iterdir()):
            if (match := _NAME.fullmatch(path.name)) is None:
                continue
            with path.open("rb") as file:
                line = file.readline(_READ_BYTES)
            try:
                before = _read_head(path, line)
            except (ValueError, TypeError, KeyError):
                path.rename(path.with_suffix(".damaged"))
                self._log.error("audit.damaged", file=str(path), why="its first line")
                continue
            found.append(_Segment(int(match[1]), path, before, len(line), len(line)))
        return found

    def _begin_chain(self, now: datetime, previous: Head | None) -> Head:
        replica = re.sub(r"[^A-Za-z0-9.-]", "-", self._replica)[:63]
        made = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.previous = previous
        head = begin(f"{replica}/{made}-{secrets.token_hex(4)}")
        self._rotate(head)
        return head

    def _open_last(self) -> None:
        """Go on with the last segment, without the rest of a write that a crash left at its end."""
        last = self._segments[-1]
        self._descriptor = os.open(last.path, os.O_RDWR)
        self.cut_bytes = os.fstat(self._descriptor).st_size - last.size
        if self.cut_bytes:
            os.ftruncate(self._descriptor, last.size)
            self._log.warning("audit.cut", file=str(last.path), bytes=self.cut_bytes)
        os.fsync(self._descriptor)  # what was read must not be lost any more

    def _write(self, data: bytes) -> None:
        segment, descriptor = self._segments[-1], self._descriptor
        assert descriptor is not None  # noqa: S101
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], segment.size + written)
        except OSError:
            try:
                os.ftruncate(descriptor, segment.size)
            except OSError:
                self._close_active()
            raise
        try:
            os.fdatasync(descriptor)
        except OSError:
            # Nobody knows which bytes it left, and it tells that once only: begin a new file.
            with suppress(OSError):
                os.ftruncate(descriptor, segment.size)
            self._close_active()
            raise
        with self._lock:
            segment.size += len(data)
            self._size += len(data)

    def _rotate(self, head: Head) -> None:
        """Begin a segment; delete the last one if it has no record."""
        last = self._segments[-1] if self._segments else None
        number = last.number + 1 if last else 1
        path = self._directory / f"audit-{number:012}.log"
        line = json.dumps(head._asdict()).encode() + b"\n"
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600)
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(28, "No space left on device")
            os.fsync(descriptor)
            new.rename(path)
            sync(self._directory)
        except BaseException:
            os.close(descriptor)
            new.unlink(missing_ok=True)
            raise
        self._close_active()
        self._descriptor = descriptor
        with self._lock:
            if last and last.size == last.begin:
                self._segments.remove(last)
                self._size -= last.size
            self._segments.append(_Segment(number, path, head, len(line), len(line)))
            self._size += len(line)
        if last and last.size == last.begin:
            last.path.unlink(missing_ok=True)

    def _close_active(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _read_head(path: Path, line: bytes) -> Head:
    facts = json.loads(line)
    head = Head(facts["chain"], facts["seq"], facts["hash"])
    if (readable_from := facts.get("readable_from", FORMAT)) > FORMAT:
        raise SchemaTooNewError(str(path), readable_from, FORMAT)
    return head


def _measure_all(segments: Sequence[_Segment]) -> ChainedRecord | None:
    """Find where the good records of each segment end, and return the last of all."""
    last: ChainedRecord | None = None
    for segment, following in itertools.zip_longest(segments, segments[1:]):
        last = _measure(segment, following.before if following else None) or last
    return last


def _measure(segment: _Segment, after: Head | None) -> ChainedRecord | None:
    """Find where the good records of a segment end, and return the last of them.

    Args:
        segment: Its size is set.
        after: Where the next segment begins; what is beyond was never durable.
    """
    last = None
    most = after.seq if after and after.chain == segment.before.chain else None
    with segment.path.open("rb") as file:
        end = file.seek(segment.begin)
        for line in file:
            end += len(line)
            stored = read_stored(line)
            if stored is None or (most is not None and stored.seq > most):
                continue
            if last is None or stored.seq > last.seq:
                last, segment.size = stored, end
    return last


def _read_lines(path: Path, offset: int, size: int) -> tuple[list[ChainedRecord], int]:
    """Return the records of a part of a segment, and where it ends; damaged lines are passed."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(min(_READ_BYTES, size - offset))
    whole = data[: data.rfind(b"\n") + 1] or data
    found = [read_stored(line) for line in whole.splitlines(keepends=True)]
    return [each for each in found if each is not None], offset + len(whole)
