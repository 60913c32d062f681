"""Which link behind all agents is broken, by what gateway and writer know."""

import pytest
from tests.headend.fleet.words import word

from derops.data_path import Link, SharedFault
from derops.schedules import SECOND_US
from derops_headend.fleet.headend_path import (
    BEHIND_SECONDS,
    SILENT_SECONDS,
    HeadendPath,
    LinkJudgement,
    WordsHeard,
    judge_database,
    judge_log,
    judge_writer,
)
from derops_headend.writing.word import WriterWord

NOW_US = 1_000 * SECOND_US


def heard(*words: WriterWord, shards: int = 1, at: float = 10.0) -> WordsHeard:
    """Return what was heard of writers that live: each word, and before it another one."""
    subject = WordsHeard(range(shards), 0.0)
    subject.hear({each.shard: word(shard=each.shard, left_us=0) for each in words}, at - 5)
    subject.hear({each.shard: each for each in words}, at)
    return subject


def fault_of(judgement: LinkJudgement | None) -> SharedFault | None:
    assert judgement is not None
    return judgement.fault


def test_a_log_that_takes_what_comes_holds() -> None:
    assert judge_log("", 0.94, {}).fault is None


def test_a_full_log_is_full_also_where_an_append_failed_for_that() -> None:
    told = judge_log("LogFullError: the event log holds its bound", 0.95, {})

    assert told.fault is SharedFault.LOG_FULL
    assert "95%" in told.message


def test_a_log_that_does_not_take_says_why() -> None:
    told = judge_log("OperationalError: database or disk is full", 0.1, {})

    assert told.fault is SharedFault.LOG_FAILING
    assert "disk is full" in told.message


def test_a_log_that_the_writer_cannot_read_is_broken() -> None:
    told = judge_log("", 0.1, {0: word(fault=SharedFault.LOG_FAILING, message="disk I/O error")})

    assert told.fault is SharedFault.LOG_FAILING
    assert "disk I/O error" in told.message


def test_a_writer_that_never_speaks_is_silent_after_a_while_and_not_before() -> None:
    subject = WordsHeard(range(1), 0.0)

    assert judge_writer(subject, SILENT_SECONDS - 1, NOW_US) is None
    told = judge_writer(subject, SILENT_SECONDS, NOW_US)

    assert fault_of(told) is SharedFault.WRITER_SILENT
    assert told is not None
    assert "30 s are allowed" in told.message


def test_a_word_that_does_not_change_is_that_of_a_dead_writer() -> None:
    subject = WordsHeard(range(1), 0.0)
    for second in range(0, 60, 5):
        subject.hear({0: word()}, second)

    assert fault_of(judge_writer(subject, 60, NOW_US)) is SharedFault.WRITER_SILENT
    assert judge_database(subject.fresh(60), NOW_US) is None


def test_the_clock_of_the_writer_does_not_matter() -> None:
    subject = heard(word(left_us=NOW_US * 1000), at=10)

    assert fault_of(judge_writer(subject, 11, NOW_US)) is None
    assert fault_of(judge_writer(subject, 41, NOW_US)) is SharedFault.WRITER_SILENT


@pytest.mark.parametrize(
    ("seconds", "fault"), [(BEHIND_SECONDS, None), (BEHIND_SECONDS + 1, SharedFault.WRITER_BEHIND)]
)
def test_a_writer_is_behind_when_the_next_record_waits_for_too_long(
    seconds: int, fault: SharedFault | None
) -> None:
    late = word(last=500, waiting_since_us=NOW_US - seconds * SECOND_US)
    told = judge_writer(heard(late), 11, NOW_US)

    assert fault_of(told) is fault
    if fault is not None:
        assert told is not None
        assert "61 s, 60 s are allowed; 490 records wait" in told.message


def test_a_writer_that_waits_for_the_database_is_not_itself_behind() -> None:
    waiting = word(
        fault=SharedFault.DATABASE_UNREACHABLE,
        message="Connection refused",
        last=20,
        waiting_since_us=NOW_US - 500 * SECOND_US,
        since_us=NOW_US - 501 * SECOND_US,
    )
    subject = heard(waiting)

    assert fault_of(judge_writer(subject, 11, NOW_US)) is None
    told = judge_database(subject.fresh(11), NOW_US)
    assert fault_of(told) is SharedFault.DATABASE_UNREACHABLE
    assert told is not None
    assert told.since_us == NOW_US - 501 * SECOND_US
    assert "Connection refused; 10 records wait, the oldest for 500 s" in told.message


def test_a_damaged_log_is_the_writers() -> None:
    subject = heard(word(fault=SharedFault.LOG_DAMAGED, message="record 3 does not match"))

    told = judge_writer(subject, 11, NOW_US)

    assert fault_of(told) is SharedFault.LOG_DAMAGED
    assert fault_of(judge_database(subject.fresh(11), NOW_US)) is None


def test_of_several_shards_the_worst_counts_and_is_named() -> None:
    good, late = word(), word(shard=1, waiting_since_us=NOW_US - 100 * SECOND_US, last=99)
    behind = judge_writer(heard(good, late, shards=2), 11, NOW_US)
    silent = judge_writer(heard(good, shards=2), 31, NOW_US)
    full = word(shard=1, fault=SharedFault.DATABASE_FULL)
    refused = word(shard=2, fault=SharedFault.DATABASE_REFUSES)
    database = judge_database({0: good, 1: full, 2: refused}, NOW_US)

    assert fault_of(behind) is SharedFault.WRITER_BEHIND
    assert behind is not None
    assert "shard 1" in behind.message
    assert fault_of(silent) is SharedFault.WRITER_SILENT
    assert silent is not None
    assert "shard 1" in silent.message
    assert fault_of(database) is SharedFault.DATABASE_REFUSES
    assert database is not None
    assert "shard 2" in database.message


def test_only_another_reason_is_news_and_since_stays_with_the_reason() -> None:
    path = HeadendPath()
    holds = LinkJudgement(link=Link.WRITER, message="0 records wait")
    silent = LinkJudgement(link=Link.WRITER, fault=SharedFault.WRITER_SILENT, message="30 s")

    assert path.take([holds, None], 1)
    assert not path.take([LinkJudgement(link=Link.WRITER, message="5 records wait"), None], 2)
    assert path.take([silent, None], 3)
    assert not path.take([LinkJudgement(link=Link.WRITER, fault=silent.fault, message="35 s")], 4)

    (told,) = path.message(5).links
    assert (told.link, told.reason, told.message, told.since_us) == (
        "Writer", "WriterSilent", "35 s", 3,
    )  # fmt: skip
    assert path.take([None], 6)
