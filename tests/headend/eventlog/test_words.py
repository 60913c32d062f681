"""What every place where writers leave word promises, and when a writer may speak."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.headend.eventlog.engines import JetStreamEngine
from tests.headend.fleet.words import word
from tests.stack.nats import NatsServer

from derops.data_path import SharedFault
from derops_headend.eventlog.jetstream_words import JetStreamWords
from derops_headend.eventlog.words import FileWords, WordUnavailableError, WriterWords
from derops_headend.programs.word_leaver import DEAD_AFTER_SECONDS, SpeakingTurns
from derops_headend.writing.word import MAX_WORD_BYTES

Place = tuple[WriterWords, WriterWords]
"""As a gateway opens it, and as a writer does."""


@pytest.fixture(params=["file", "jetstream"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    gateway: WriterWords
    writer: WriterWords
    if request.param == "file":
        gateway, writer = FileWords(tmp_path), FileWords(tmp_path)
    else:
        where = JetStreamEngine(request.getfixturevalue("nats_server")).where
        gateway, writer = JetStreamWords(where, copies=1), JetStreamWords(where)
    yield gateway, writer
    await gateway.close()
    await writer.close()


async def test_where_nobody_left_word_there_is_none(place: Place) -> None:
    gateway, _ = place

    assert await gateway.read([0, 1]) == {}


async def test_the_newest_word_of_each_shard_is_read_as_it_was_left(place: Place) -> None:
    gateway, writer = place
    await gateway.read([0])
    full = word(
        shard=1,
        committed=None,
        fault=SharedFault.DATABASE_FULL,
        message="kein Platz: \u2013 \x00",
        since_us=5,
    )

    await writer.leave(word(shard=0, committed=1))
    await writer.leave(word(shard=0, committed=2))
    await writer.leave(full)

    assert await gateway.read([0, 1, 2]) == {0: word(shard=0, committed=2), 1: full}
    assert await writer.read([1]) == {1: full}


async def test_a_word_is_left_again_and_again_without_anything_growing(place: Place) -> None:
    gateway, writer = place
    await gateway.read([0])

    for number in range(300):
        await writer.leave(word(message="x" * 100_000, left_us=number))

    found = (await gateway.read([0]))[0]
    assert found.left_us == 299
    assert len(found.message) < 1000


async def test_a_writer_without_a_gateway_hears_that_word_cannot_be_left(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    for words in (
        FileWords(tmp_path / "not-made"),
        JetStreamWords(JetStreamEngine(nats_server).where),
    ):
        with pytest.raises(WordUnavailableError):
            await words.leave(word())
        assert await words.read([0]) == {}
        await words.close()


async def test_a_bucket_that_is_gone_is_made_anew(nats_server: NatsServer) -> None:
    where = JetStreamEngine(nats_server).where
    gateway, writer = JetStreamWords(where, copies=1), JetStreamWords(where)
    await gateway.read([0])
    await writer.leave(word())

    connection = gateway._connection
    assert connection is not None
    await connection.jetstream().delete_stream(f"KV_{where.prefix}_WORDS")
    assert await gateway.read([0]) == {}
    await writer.leave(word(committed=9))

    assert (await gateway.read([0]))[0].committed == 9
    await gateway.close()
    await writer.close()


async def test_a_file_is_its_owners_alone_and_nonsense_in_it_is_no_word(tmp_path: Path) -> None:
    words, file = FileWords(tmp_path), tmp_path / "writer-0.json"
    await words.leave(word())

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["writer-0.json"]
    for nonsense in (b"", b"{", b"[" * 100_000, b"{}", b"\xff", b"x" * (MAX_WORD_BYTES + 1)):
        file.write_bytes(nonsense)
        assert await words.read([0]) == {}


def test_one_that_stores_speaks_at_once() -> None:
    turns = SpeakingTurns()

    assert turns.may_speak(word(writer="new"), word(writer="old"), 0)


def test_one_with_a_fault_speaks_only_where_the_other_is_gone() -> None:
    turns, mine = SpeakingTurns(), word(writer="new", fault=SharedFault.DATABASE_UNREACHABLE)
    old = word(writer="old", left_us=1)

    assert turns.may_speak(mine, None, 0)
    assert not turns.may_speak(mine, old, 0)
    assert not turns.may_speak(mine, word(writer="old", left_us=2), DEAD_AFTER_SECONDS)
    last = word(writer="old", left_us=3)
    assert not turns.may_speak(mine, last, DEAD_AFTER_SECONDS + 1)
    assert not turns.may_speak(mine, last, 2 * DEAD_AFTER_SECONDS)
    assert turns.may_speak(mine, last, 2 * DEAD_AFTER_SECONDS + 1)
    assert turns.may_speak(mine, mine, 2 * DEAD_AFTER_SECONDS + 1)
