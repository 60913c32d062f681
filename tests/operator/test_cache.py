"""The cache: of one object the newer stays, whoever brings it."""

from dataclasses import replace

from tests.operator.certifying import certificate, request
from tests.operator.making import asset, at, dispatch

from derops_operator.cluster.cache import Cache
from derops_operator.resources.facts import Fact
from derops_operator.resources.objects import Kind, ObjectKey, Unreadable

PEAK = ObjectKey(Kind.DISPATCH, "pilot", "peak")


def version(fact: Fact, number: str, uid: str = "") -> Fact:
    meta = replace(fact.meta, resource_version=number, uid=uid or fact.meta.uid)
    return replace(fact, meta=meta)


def test_an_older_word_never_replaces_a_newer_one() -> None:
    cache = Cache()
    assert cache.put(Kind.DISPATCH, version(dispatch(), "9"))
    assert cache.put(Kind.DISPATCH, version(dispatch(), "10"))

    assert not cache.put(Kind.DISPATCH, version(dispatch(), "9"))
    assert not cache.put(Kind.DISPATCH, version(dispatch(), "10"))
    assert cache.has(PEAK, "uid-peak", "10")


def test_versions_that_are_not_numbers_are_taken_as_they_come() -> None:
    cache = Cache()
    cache.put(Kind.DISPATCH, version(dispatch(), "b"))

    assert cache.put(Kind.DISPATCH, version(dispatch(), "a"))
    assert not cache.put(Kind.DISPATCH, version(dispatch(), "a"))


def test_a_recreated_object_replaces_the_former_whatever_its_version() -> None:
    cache = Cache()
    cache.put(Kind.DISPATCH, version(dispatch(), "99"))

    assert cache.put(Kind.DISPATCH, version(dispatch(), "5", uid="uid-new"))
    assert cache.key_of("uid-peak") is None
    assert cache.key_of("uid-new") == PEAK


def test_a_late_deletion_of_the_former_leaves_the_recreated_object() -> None:
    cache = Cache()
    cache.put(Kind.DISPATCH, version(dispatch(), "5", uid="uid-new"))

    assert cache.drop(PEAK, "uid-peak") is None
    assert cache.dispatch("pilot", "peak") is not None


def test_a_certificate_found_unchanged_was_seen_again() -> None:
    cache = Cache()
    cache.put(Kind.CERTIFICATE, certificate(seen=0))
    key = ObjectKey(Kind.CERTIFICATE, "pilot", "battery-derops-agent")

    cache.see_again(key, at(60))

    known = cache.certificate("pilot", "battery-derops-agent")
    assert known is not None
    assert known.seen_us == at(60)


def unreadable(number: str, uid: str = "uid-peak") -> Unreadable:
    meta = replace(dispatch().meta, resource_version=number, uid=uid)
    return Unreadable(
        kind=Kind.DISPATCH, meta=meta, asset_name="battery", may_be_held=True, problem="x"
    )


def test_what_cannot_be_read_stands_beside_what_was_read_before() -> None:
    cache = Cache()
    cache.put(Kind.DISPATCH, version(dispatch(), "9"))
    assert not cache.put_unreadable(unreadable("8")), "an older word"
    assert cache.put_unreadable(unreadable("10"))
    assert cache.dispatch("pilot", "peak") is not None
    assert cache.has(PEAK, "uid-peak", "10")
    assert cache.unread_dispatches_of("pilot", "battery") == [], "something was read of it"
    assert not cache.put(Kind.DISPATCH, version(dispatch(), "9")), "an older word healed it"

    assert cache.put(Kind.DISPATCH, version(dispatch(), "11"))
    assert (cache.unreadable, cache.key_of("uid-peak")) == ({}, PEAK)


def test_what_could_never_be_read_is_known_by_uid_and_asset_until_it_is_gone() -> None:
    cache = Cache()
    assert cache.put_unreadable(unreadable("10"))
    assert cache.key_of("uid-peak") == PEAK
    assert cache.unread_dispatches_of("pilot", "battery") == ["peak"]
    assert cache.drop(PEAK, "uid-of-another") is None

    assert cache.drop(PEAK, "uid-peak") is not None
    assert (cache.unreadable, cache.key_of("uid-peak")) == ({}, None)
    assert cache.unread_dispatches_of("pilot", "battery") == []


def test_the_indexes_follow() -> None:
    cache = Cache()
    cache.put(Kind.ASSET, asset())
    cache.put(Kind.DISPATCH, dispatch())
    cache.put(Kind.REQUEST, request())
    assert [each.meta.name for each in cache.dispatches_of("pilot", "battery")] == ["peak"]
    assert len(cache.requests_of("pilot", "battery")) == 1

    moved = version(dispatch(assetRef={"name": "other"}), "11", uid="uid-2")
    cache.put(Kind.DISPATCH, moved)
    cache.drop(ObjectKey(Kind.REQUEST, "pilot", "battery-derops-agent-1"))
    assert list(cache.dispatches_of("pilot", "battery")) == []
    assert cache.requests_of("pilot", "battery") == ()
    assert len(cache) == 2
