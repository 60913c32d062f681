"""Which links behind all agents are broken, as one gateway sees it: log, writer, database. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from derops.data_path import LINK_OF, Link, SharedFault
from derops.schedules import SECOND_US
from derops.wire.v1 import control_pb2
from derops_headend.fleet.telemetry import REFUSE_FROM
from derops_headend.writing.word import WriterWord

SILENT_SECONDS = 30.0
"""How long no word of a writer may come."""

BEHIND_SECONDS = 60
"""How long the next record may wait to be stored."""

_MAX_REASON = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkJudgement:
    """How one link stands.

    Attributes:
        link: Which.
        fault: Why it is broken; None = it holds.
        message: The evidence: value, age, limit.
        since_us: From when on that holds, by this gateway's clock.
    """

    link: Link
    fault: SharedFault | None = None
    message: str
    since_us: int = 0


class WordsHeard:
    """When the words of writers were seen to change: that needs no clock but one's own."""

    def __init__(self, shards: Sequence[int], now_seconds: float) -> None:
        """Begin with nothing heard.

        Args:
            shards: All of the log.
            now_seconds: By a clock that is not set.
        """
        self.shards = shards
        self._began = now_seconds
        self._heard: dict[int, tuple[WriterWord, float | None]] = {}

    def hear(self, words: Mapping[int, WriterWord], now_seconds: float) -> None:
        """Take what there is now. The first word of a shard may be an old one."""
        for shard, word in words.items():
            known = self._heard.get(shard)
            if known is None:
                self._heard[shard] = (word, None)
            elif known[0] != word:
                self._heard[shard] = (word, now_seconds)

    def fresh(self, now_seconds: float) -> dict[int, WriterWord]:
        """Return the words of those writers that live."""
        return {
            shard: word
            for shard, (word, changed) in self._heard.items()
            if changed is not None and now_seconds - changed < SILENT_SECONDS
        }

    def silent_seconds(self, shard: int, now_seconds: float) -> float:
        """Return for how long nothing was heard of a shard's writer."""
        _, changed = self._heard.get(shard, (None, None))
        return now_seconds - (self._began if changed is None else changed)


def judge_log(failure: str, fill: float, words: Mapping[int, WriterWord]) -> LinkJudgement:
    """Judge the event log.

    Args:
        failure: Why the last append failed; empty = it did not.
        fill: The share of its bound that is taken.
        words: Of the writers that live.
    """
    link = Link.EVENT_LOG
    if fill >= REFUSE_FROM:
        message = (
            f"{fill:.0%} of the event log's bound is taken; "
            f"from {REFUSE_FROM:.0%} on telemetry waits at the agents"
        )
        return LinkJudgement(link=link, fault=SharedFault.LOG_FULL, message=message)
    if failure:
        message = f"the event log does not take what arrives: {failure[:_MAX_REASON]}"
        return LinkJudgement(link=link, fault=SharedFault.LOG_FAILING, message=message)
    worst = _first_with(words, Link.EVENT_LOG)
    if worst is not None:
        message = f"the writer{_of_shard(worst.shard, words)} cannot read it: {worst.message}"
        return LinkJudgement(link=link, fault=worst.fault, message=message)
    return LinkJudgement(link=link, message=f"{fill:.0%} of its bound is taken")


def judge_writer(heard: WordsHeard, now_seconds: float, now_us: int) -> LinkJudgement | None:
    """Judge the writers, by the worst shard; None = it is too early."""
    words = heard.fresh(now_seconds)
    broken = _find_silent(heard, now_seconds)
    damaged = _first_with(words, Link.WRITER)
    if broken is None and damaged is not None:
        message = f"{damaged.message}; the writer stands there"
        broken = LinkJudgement(link=Link.WRITER, fault=damaged.fault, message=message)
    broken = broken or _find_behind(words, now_us)
    if broken is not None or len(words) < len(heard.shards):
        return broken
    records = sum(_waiting(word) for word in words.values())
    return LinkJudgement(link=Link.WRITER, message=f"{records} records wait to be stored")


def _find_silent(heard: WordsHeard, now_seconds: float) -> LinkJudgement | None:
    for shard in heard.shards:
        silent_seconds = heard.silent_seconds(shard, now_seconds)
        if silent_seconds >= SILENT_SECONDS:
            message = (
                f"no word of the writer{_of_shard(shard, heard.shards)} for "
                f"{silent_seconds:.0f} s, {SILENT_SECONDS:.0f} s are allowed"
            )
            return LinkJudgement(link=Link.WRITER, fault=SharedFault.WRITER_SILENT, message=message)
    return None


def _find_behind(words: Mapping[int, WriterWord], now_us: int) -> LinkJudgement | None:
    """Return that of the oldest record; a writer that waits for the database is not behind."""
    behind = [word for word in words.values() if word.fault is None and word.waiting_since_us]
    oldest = min(behind, key=lambda word: word.waiting_since_us, default=None)
    if oldest is None:
        return None
    waiting_seconds = (now_us - oldest.waiting_since_us) // SECOND_US
    if waiting_seconds <= BEHIND_SECONDS:
        return None
    message = (
        f"what is next to be stored{_of_shard(oldest.shard, words)} has waited for "
        f"{waiting_seconds} s, {BEHIND_SECONDS} s are allowed; {_waiting(oldest)} records wait"
    )
    return LinkJudgement(link=Link.WRITER, fault=SharedFault.WRITER_BEHIND, message=message)


def judge_database(words: Mapping[int, WriterWord], now_us: int) -> LinkJudgement | None:
    """Judge the database by what living writers say of it; None = nobody says anything.

    Args:
        words: Of the writers that live.
        now_us: The wall clock.
    """
    worst = _first_with(words, Link.DATABASE)
    if worst is None:
        told = LinkJudgement(link=Link.DATABASE, message="it stores what comes")
        return told if words else None
    message = f"the writer{_of_shard(worst.shard, words)} says: {worst.message}"
    if worst.waiting_since_us:
        waiting_seconds = max(0, now_us - worst.waiting_since_us) // SECOND_US
        message += f"; {_waiting(worst)} records wait, the oldest for {waiting_seconds} s"
    return LinkJudgement(
        link=Link.DATABASE,
        fault=worst.fault,
        message=message,
        since_us=min(worst.since_us, now_us),
    )


class HeadendPath:
    """The links as they were last told, and since when each stands as it does."""

    def __init__(self) -> None:
        self._held: dict[Link, LinkJudgement] = {}

    def take(self, judgements: Sequence[LinkJudgement | None], now_us: int) -> bool:
        """Take how all links stand now; tell whether that is news: another reason, or a link more.

        A judgement that says itself since when it holds is believed.
        """
        before = self._held
        self._held = {}
        for each in judgements:
            if each is None:
                continue
            known = before.get(each.link)
            is_same = known is not None and known.fault is each.fault
            since_us = known.since_us if known is not None and is_same else each.since_us or now_us
            self._held[each.link] = replace(each, since_us=since_us)
        return {link: each.fault for link, each in before.items()} != {
            link: each.fault for link, each in self._held.items()
        }

    def message(self, now_us: int) -> control_pb2.HeadendState:
        """Return what the operator is told."""
        return control_pb2.HeadendState(
            links=[
                control_pb2.LinkState(
                    link=each.link,
                    reason=each.fault or "",
                    message=each.message,
                    since_us=each.since_us,
                )
                for each in self._held.values()
            ],
            judged_us=now_us,
        )


def _first_with(words: Mapping[int, WriterWord], link: Link) -> WriterWord | None:
    """Return the word with the first fault of a link, in the order of ``SharedFault``."""
    order = list(SharedFault)
    found = [
        (order.index(word.fault), word.shard, word)
        for word in words.values()
        if word.fault is not None and LINK_OF[word.fault] is link
    ]
    return min(found)[2] if found else None


def _waiting(word: WriterWord) -> int:
    return max(0, word.last - (word.committed or 0)) if word.committed is not None else 0


def _of_shard(shard: int, shards: Mapping[int, WriterWord] | Sequence[int]) -> str:
    return f" of shard {shard}" if len(shards) > 1 else ""
