"""Nobody else on the machine reads what the stack keeps: data, keys, logs."""

import stat

from tests.stack.stack import Stack


def test_files_are_for_their_owner_alone(stack: Stack) -> None:
    entries = [each for each in stack.data_directory.rglob("*") if not each.is_symlink()]
    # PostgreSQL runs as somebody else, who passes through the stack's folder to its own.
    ways = {stack.data_directory / each.name for each in stack.data_directory.iterdir()}

    open_files = [each for each in entries if each.is_file() and _open(each.lstat().st_mode)]
    open_folders = [
        each
        for each in entries
        if each.is_dir() and each not in ways and _open(each.lstat().st_mode)
    ]

    assert len(entries) > 100
    assert open_files == []
    assert open_folders == []


def _open(mode: int) -> bool:
    return bool(stat.S_IMODE(mode) & 0o077)
