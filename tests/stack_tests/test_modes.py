"""Nobody else on the machine reads what the stack keeps: data, keys, logs."""

import stat

from tests.stack.stack import Stack


def test_files_are_for_their_owner_alone(stack: Stack) -> None:
    entries = [each for each in stack.data_directory.rglob("*") if not each.is_symlink()]
    files = [each for each in entries if each.is_file()]
    # A folder that holds no more than folders is passed through: PostgreSQL runs as somebody else.
    folders = {file.parent for file in files} - {stack.data_directory}

    open_files = [each for each in files if _open(each.lstat().st_mode)]
    open_folders = [each for each in folders if _open(each.lstat().st_mode)]

    assert len(entries) > 100
    assert open_files == []
    assert open_folders == []


def _open(mode: int) -> bool:
    return bool(stat.S_IMODE(mode) & 0o077)
