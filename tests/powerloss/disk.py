"""What a disk may hold after loss of power, for a recorded order of operations.

Of each file all is there that was written before its last sync. Of what was written since, any part
may be: each write whole, missing, or torn between its sectors; each change of the size; and zeros
where the size is there and the data is not.

Of names (files made, renamed, removed; directories made) there are two models:

- journaled, as ext4 and xfs do it: they reach the disk in their order, and any sync brings all that
  were before it;
- strict, what POSIX promises: each reaches the disk for itself, and is sure to be there only after
  a sync of its directory.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.powerloss.recording import Kind, Operation

SECTOR_BYTES = 512
_SHARED_MEMORY = "-shm"

Image = dict[str, bytes | None]
"""Files by path, in the order in which they can be made; None = a directory."""


@dataclass(slots=True, eq=False)
class _Node:
    """A file or directory, whatever its names are."""

    is_folder: bool = False
    durable: bytes = b""
    pending: list[Operation] = field(default_factory=list)

    def crash(self, rng: random.Random) -> bytes:
        """Return what may be there."""
        content = bytearray(self.durable)
        survives = _choose(rng, len(self.pending))
        for number, operation in enumerate(self.pending):
            if survives(number):
                _apply(content, operation, rng)
            elif rng.random() < 0.2 and operation.kind is Kind.WRITE:
                _extend(content, operation.offset + len(operation.data))
        return bytes(content)

    def whole(self) -> bytes:
        """Return what is there as long as there is power."""
        content = bytearray(self.durable)
        for operation in self.pending:
            _apply(content, operation)
        return bytes(content)


class _Names:
    """Which names there are, by one of the models."""

    def __init__(self, *, strict: bool, names: dict[str, _Node]) -> None:
        self._strict = strict
        self._durable = dict(names)
        self._pending: list[tuple[Operation, _Node | None]] = []

    def change(self, operation: Operation, node: _Node | None) -> None:
        self._pending.append((operation, node))

    def sync(self, folder: str | None) -> None:
        """Make durable what a sync of a directory does; None = of a file."""
        waiting = []
        for operation, node in self._pending:
            if not self._strict or str(Path(operation.path).parent) == folder:
                _rename(self._durable, operation, node)
            else:
                waiting.append((operation, node))
        self._pending = waiting

    def crash(self, rng: random.Random) -> dict[str, _Node]:
        """Return the names that may be there."""
        names = dict(self._durable)
        count = len(self._pending)
        through = rng.randint(0, count)
        survives = _choose(rng, count) if self._strict else lambda number: number < through
        for number, (operation, node) in enumerate(self._pending):
            if survives(number):
                _rename(names, operation, node)
        return names


class Disk:
    """Follows a recording."""

    def __init__(self, folder: Path, *, ignores: Callable[[str], bool] = lambda _: False) -> None:
        """Begin with what is in a folder, all of it durable.

        Args:
            folder: Where the recording is made.
            ignores: Tells, by the name of a file, whether its syncs do nothing; for tests.
        """
        self._root, self._ignores = str(folder), ignores
        self.now: dict[str, _Node] = {}
        self._nodes: dict[int, _Node] = {}
        for path in (folder, *sorted(folder.rglob("*"))):
            is_folder = path.is_dir()
            node = _Node(is_folder, b"" if is_folder else path.read_bytes())
            self.now[str(path)] = self._nodes[path.stat().st_ino] = node
        self._names = {strict: _Names(strict=strict, names=self.now) for strict in (False, True)}

    def apply(self, operation: Operation) -> None:
        """Take the next operation."""
        if operation.kind in (Kind.WRITE, Kind.TRUNCATE):
            self._nodes[operation.inode].pending.append(operation)
        elif operation.kind is Kind.SYNC:
            self._sync(self._nodes[operation.inode])
        elif operation.kind is not Kind.TELL:
            self._change(operation)

    def crash(self, rng: random.Random, *, strict: bool) -> Image:
        """Return what the disk may hold if the power goes now, by path below the folder."""
        return self._image(self._names[strict].crash(rng), lambda node: node.crash(rng))

    def whole(self) -> Image:
        """Return what is there as long as there is power."""
        return self._image(self.now, _Node.whole)

    def _image(self, names: dict[str, _Node], content: Callable[[_Node], bytes]) -> Image:
        image: Image = {}
        for path in sorted(names):
            below = path.removeprefix(self._root).lstrip("/")
            parent = str(Path(below).parent)
            if below and (parent == "." or parent in image):  # else its directory is gone
                image[below] = None if names[path].is_folder else content(names[path])
        return image

    def _sync(self, node: _Node) -> None:
        path = next((path for path, named in self.now.items() if named is node), "")
        if self._ignores(path):
            return
        node.durable, node.pending = node.whole(), []
        for names in self._names.values():
            names.sync(path if node.is_folder else None)

    def _change(self, operation: Operation) -> None:
        if operation.kind in (Kind.CREATE, Kind.MKDIR):
            node = self._nodes[operation.inode] = _Node(operation.kind is Kind.MKDIR)
        else:
            node = self.now[operation.path]
        _rename(self.now, operation, node)
        for names in self._names.values():
            names.change(operation, node)


def write_image(image: Image, folder: Path) -> None:
    """Make the files of an image."""
    for below, content in image.items():
        if content is None:
            (folder / below).mkdir()
        else:
            (folder / below).write_bytes(content)


def read_folder(folder: Path) -> Image:
    """Return the files that are there."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(_SHARED_MEMORY)
    }


def _choose(rng: random.Random, count: int) -> Callable[[int], bool]:
    """Return which of so many survive: none, all, the first, all but a few, or some."""
    through, share = rng.randint(0, count), rng.choice((0.1, 0.5, 0.9))
    lost = {rng.randrange(count)} if count else set()
    some = {number for number in range(count) if rng.random() < share}
    ways: list[Callable[[int], bool]] = [
        lambda number: False,
        lambda number: True,
        lambda number: number < through,
        lambda number: number not in lost,
        lambda number: number in some,
    ]
    return rng.choice(ways)


def _apply(content: bytearray, operation: Operation, rng: random.Random | None = None) -> None:
    """Change a file; with ``rng``, a write may be torn."""
    if operation.kind is Kind.TRUNCATE:
        del content[operation.offset :]
        _extend(content, operation.offset)
        return
    begin, end = operation.offset, operation.offset + len(operation.data)
    if rng is None or rng.random() < 0.7:
        _extend(content, begin)
        content[begin:end] = operation.data
        return
    for sector in range(begin // SECTOR_BYTES * SECTOR_BYTES, end, SECTOR_BYTES):
        if rng.random() < 0.5:
            first, last = max(sector, begin), min(sector + SECTOR_BYTES, end)
            _extend(content, first)
            content[first:last] = operation.data[first - begin : last - begin]


def _extend(content: bytearray, size: int) -> None:
    content.extend(bytes(max(0, size - len(content))))


def _rename(names: dict[str, _Node], operation: Operation, node: _Node | None) -> None:
    if operation.kind in (Kind.UNLINK, Kind.RENAME):
        names.pop(operation.path, None)
    if operation.kind is Kind.RENAME:
        names[operation.data.decode()] = _known(node)
    elif operation.kind in (Kind.CREATE, Kind.MKDIR):
        names[operation.path] = _known(node)


def _known(node: _Node | None) -> _Node:
    assert node is not None
    return node
