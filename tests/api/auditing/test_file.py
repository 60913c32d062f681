"""The audit's file: durable, in order, bounded, and gone on with after whatever happened to it."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from tests.api.auditing.making import NOW

from derops.instants import format_instant
from derops_headend.api.audit import file as file_module
from derops_headend.api.audit.file import AuditFile, FilePosition
from derops_headend.storage.chain import NOTHING, ChainedRecord, hash_of

Open = Callable[..., AuditFile]


@pytest.fixture
def open_file(tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as opened:

        def open_file(days: int = 0) -> AuditFile:
            opened.close()
            file = AuditFile(tmp_path, replica="api-0", now=NOW + timedelta(days=days))
            opened.callback(file.close)
            return file

        yield open_file


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "SEGMENT_BYTES", 2000)


def facts(number: int, days: int = 0) -> str:
    at = format_instant(NOW + timedelta(days=days), "microseconds")
    return f'{{"at":"{at}","n":{number}}}'


def assert_chained(records: list[ChainedRecord]) -> None:
    assert all(hash_of(each.body) == each.hash for each in records)
    for before, after in pairwise(records):
        assert after.seq == before.seq + 1
        assert f'"prev":"{before.hash}"' in after.body


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("audit-*.log"))


def test_what_was_appended_is_read_in_order_and_chained(open_file: Open) -> None:
    file = open_file()
    file.append([facts(1), facts(2)])
    file.append([facts(3)])

    found = list(file.scan())

    assert [each.seq for each in found] == [1, 2, 3]
    assert f'"prev":"{NOTHING}"' in found[0].body
    assert_chained(found)
    assert file.head == found[-1][:3]


def test_it_goes_on_where_an_earlier_process_ended(open_file: Open, small_segments: None) -> None:
    for number in range(40):
        open_file().append([facts(number)])

    found = list(open_file().scan())

    assert [each.seq for each in found] == list(range(1, 41))
    assert len({each.chain for each in found}) == 1
    assert_chained(found)


def test_a_torn_end_is_cut_and_the_chain_goes_on(open_file: Open, tmp_path: Path) -> None:
    file = open_file()
    file.append([facts(1), facts(2)])
    (path,) = segments(tmp_path)
    whole = path.stat().st_size
    with path.open("r+b") as torn:
        torn.truncate(whole - 20)

    again = open_file()
    again.append([facts(3)])

    assert again.cut_bytes > 100
    found = list(again.scan())
    assert [each.body.rpartition(":")[2] for each in found] == ["1}", "3}"]
    assert_chained(found)


def test_records_behind_a_damaged_one_are_kept(open_file: Open, tmp_path: Path) -> None:
    file = open_file()
    file.append([facts(1), facts(2), facts(3)])
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"n":2}', b'"n":9}'))

    found = list(open_file().scan())

    assert [each.seq for each in found] == [1, 3]
    assert open_file().head.seq == 3


def test_a_segment_without_its_first_line_is_put_aside(
    open_file: Open, tmp_path: Path, small_segments: None
) -> None:
    file = open_file()
    for number in range(40):
        file.append([facts(number)])
    first, *_ = segments(tmp_path)
    first.write_bytes(b"x" + first.read_bytes())

    found = list(open_file().scan())

    assert first.with_suffix(".damaged").exists()
    assert found
    assert found[0].seq > 1
    assert_chained(found)


def test_what_is_elsewhere_is_given_back(
    open_file: Open, tmp_path: Path, small_segments: None
) -> None:
    file = open_file()
    for number in range(100):
        file.append([facts(number)])
    place, last = file.begin(), None
    while place != last:
        last = place
        _, place = file.read(place)
    before = file.size

    file.trim(place)

    assert file.size < before / 4
    assert len(segments(tmp_path)) == 1
    head = file.head
    again = open_file()
    assert again.head == head
    again.append([facts(100)])
    assert [each.seq for each in again.scan()][-1] == 101


def test_a_chain_that_rested_for_long_is_begun_anew(open_file: Open) -> None:
    file = open_file()
    file.append([facts(1)])
    old = file.head

    again = open_file(days=31)
    again.append([facts(2, days=31)])

    assert again.previous == old
    assert again.head.chain != old.chain
    assert [(each.chain, each.seq) for each in again.scan()] == [
        (old.chain, 1),
        (again.head.chain, 1),
    ]
    assert open_file(days=32).head == again.head


def test_a_write_that_fails_leaves_nothing(
    open_file: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = open_file()
    file.append([facts(1)])
    (path,) = segments(tmp_path)
    size, pwrite = path.stat().st_size, os.pwrite

    def fail_half_way(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) < 300:
            raise OSError(28, "No space left on device")
        return pwrite(descriptor, data[:200], offset)

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", fail_half_way)
        with pytest.raises(OSError, match="No space"):
            file.append([facts(2), facts(3)])
    assert path.stat().st_size == size

    file.append([facts(4)])
    assert [each.seq for each in file.scan()] == [1, 2]
    assert_chained(list(open_file().scan()))


def test_after_a_failed_sync_a_new_file_is_begun_and_nothing_of_it_comes_back(
    open_file: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = open_file()
    file.append([facts(1)])

    def fail(_: int, size: int = 0) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        broken.setattr(os, "ftruncate", fail)
        for _ in range(3):
            with pytest.raises(OSError, match="Input/output"):
                file.append([facts(2)])

    file.append([facts(3)])
    assert len(segments(tmp_path)) == 2
    for found in (list(file.scan()), list(open_file().scan())):
        assert ['"n":2}' in each.body for each in found] == [False, False]
        assert_chained(found)


def test_two_processes_do_not_share_a_directory(open_file: Open, tmp_path: Path) -> None:
    open_file()

    with pytest.raises(OSError, match="used by another process"):
        AuditFile(tmp_path, replica="api-0", now=NOW)


def test_the_end_is_a_place_that_stays(open_file: Open) -> None:
    file = open_file()
    assert file.read(file.begin()) == ([], file.begin())
    file.append([facts(1)])
    found, place = file.read(file.begin())
    assert len(found) == 1
    assert file.read(place) == ([], place)
    assert isinstance(place, FilePosition)


def test_its_size_is_that_of_its_segments(
    open_file: Open, tmp_path: Path, small_segments: None
) -> None:
    file = open_file()
    for number in range(50):
        file.append([facts(number)])
    file.trim(FilePosition(5, 0))

    for opened in (file, open_file()):
        assert opened.size == sum(path.stat().st_size for path in segments(tmp_path))
