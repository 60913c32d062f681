"""What waits for a slow operator, and in which order it is told."""

from typing import Any

from derops.wire.v1 import control_pb2, dispatch_pb2
from derops_headend.gateway import operator_queue
from derops_headend.gateway.operator_queue import MAX_STRAY_BYTES, MAX_WAITING_BYTES, OperatorQueue

Message = control_pb2.ReplicaMessage


def delivery(uid: str, written_us: int = 0) -> Message:
    return Message(delivery=control_pb2.Delivery(dispatch_uid=uid, written_us=written_us))


def session(uid: str, epoch: int, reason: str = "") -> Message:
    told = control_pb2.Session(asset_uid=uid, epoch=epoch, connected=not reason, end_reason=reason)
    return Message(session=told)


def report(uid: str, sequence: int, *, asset: str = "a", text: str = "") -> Message:
    said = dispatch_pb2.DispatchReport(
        dispatch_uid=uid, sequence=sequence, ledger_id="l", message=text
    )
    return Message(report=control_pb2.AgentReport(asset_uid=asset, report=said))


def accepted(version: int) -> Message:
    return Message(accepted_version=version)


def put_all(*messages: Message) -> OperatorQueue:
    queue = OperatorQueue()
    for message in messages:
        assert queue.put(message)
    return queue


def taken(queue: OperatorQueue) -> list[Any]:
    return queue.take(1000)


def test_of_each_thing_only_the_newest_waits_where_the_first_did() -> None:
    queue = put_all(
        session("a", 1), delivery("d"), report("d", 1),
        session("a", 2), report("d", 2), delivery("d", 7), session("b", 1),
    )  # fmt: skip

    assert taken(queue) == [session("a", 2), delivery("d", 7), report("d", 2), session("b", 1)]
    assert queue.bytes == 0


def test_an_accepted_version_overtakes_no_delivery_that_came_before_it() -> None:
    """A cancel counts as never delivered on the word of what was told before its version."""
    queue = put_all(accepted(1), delivery("d", 7), accepted(2), accepted(3), delivery("e"))

    assert taken(queue) == [accepted(1), delivery("d", 7), accepted(3), delivery("e")]


def test_an_earlier_word_of_a_ledger_replaces_no_later_one() -> None:
    assert taken(put_all(report("d", 5), report("d", 4))) == [report("d", 5)]


def test_that_a_clone_was_seen_is_not_lost_in_a_later_session() -> None:
    clone = session("a", 2, "CloneSuspected")
    again = session("a", 5, "CloneSuspected")

    assert taken(put_all(session("a", 1), clone, session("a", 3), session("a", 4))) == [
        clone, session("a", 4),
    ]  # fmt: skip
    assert taken(put_all(clone, session("a", 3), again)) == [again]


def test_what_is_told_of_everything_is_made_when_it_is_its_turn() -> None:
    state = [1]
    queue = put_all(accepted(1))
    queue.put_all(session("a", epoch) for epoch in state)
    queue.put(delivery("d"))
    state[:] = [2, 3]

    assert queue.take(2) == [accepted(1), session("a", 2)]
    assert queue.take(2) == [session("a", 3), delivery("d")]
    assert queue.take(2) == []


def test_the_bound_is_in_bytes(monkeypatch: Any) -> None:
    monkeypatch.setattr(operator_queue, "MAX_WAITING_BYTES", 10_000)
    queue = OperatorQueue()
    told = 0
    while queue.put(report(f"d{told}", 1, text="x" * 1000)):
        told += 1

    assert 3 <= told <= 10_000 // 2000
    assert queue.bytes <= 10_000
    assert queue.put(report("d0", 2, text="x" * 1000)), "what takes an older one's place has room"


def test_one_asset_fills_only_its_part_with_dispatches_that_nobody_holds() -> None:
    queue = OperatorQueue()
    told = 0
    while queue.has_room_for_stray(report(f"d{told}", 1, text="x" * 1000).report):
        queue.put(report(f"d{told}", 1, text="x" * 1000))
        told += 1

    assert queue.bytes <= MAX_STRAY_BYTES < MAX_WAITING_BYTES / 100
    assert queue.has_room_for_stray(report("d", 1, asset="other").report)
    queue.take(1)
    assert queue.has_room_for_stray(report("d", 1, text="x" * 1000).report)


def test_how_the_headend_stands_waits_once() -> None:
    subject = OperatorQueue()
    for reason in ("LogFull", "LogFailing", ""):
        link = control_pb2.LinkState(link="EventLog", reason=reason)
        state = control_pb2.HeadendState(links=[link])
        assert subject.put(control_pb2.ReplicaMessage(headend=state))

    (told,) = subject.take(10)
    assert told.headend.links[0].reason == ""
