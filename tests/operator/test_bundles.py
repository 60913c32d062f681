"""What is told of an authority: the one of now, and earlier ones that are not over."""

from datetime import UTC, datetime, timedelta

import pytest
from tests.pki import LIFETIME, Authority

from derops_operator.trust.bundles import (
    MAX_AUTHORITIES,
    MAX_BUNDLE_BYTES,
    BadAuthorityError,
    next_bundle,
)

NOW = datetime.now(UTC)
OVER = NOW + LIFETIME + timedelta(days=1)
"""When all authorities of these tests are over."""


def text(*authorities: Authority) -> str:
    return "".join(each.pem.decode() for each in authorities)


def some(count: int) -> list[Authority]:
    return [Authority(f"ca-{number}") for number in range(count)]


def test_the_authority_of_now_comes_first_and_the_one_before_stays() -> None:
    before, now = some(2)

    bundle = next_bundle(now.pem, text(before), NOW)

    assert bundle.pem == text(now, before)
    assert bundle.authorities == 2
    assert bundle.ends == now.certificate.not_valid_after_utc


def test_the_same_again_changes_nothing() -> None:
    before, now = some(2)
    told = text(now, before)

    assert next_bundle(now.pem, told, NOW).pem == told


def test_one_that_comes_back_is_the_first_again() -> None:
    one, other = some(2)

    assert next_bundle(one.pem, text(other, one), NOW).pem == text(one, other)


def test_without_memory_only_the_authority_of_now_is_told() -> None:
    (now,) = some(1)

    assert next_bundle(now.pem, "", NOW).pem == text(now)


def test_an_earlier_one_that_is_over_goes_and_the_one_of_now_stays() -> None:
    before, now = some(2)

    assert next_bundle(now.pem, text(before), OVER).pem == text(now)


def test_the_oldest_go_beyond_the_bound_and_are_counted() -> None:
    *earlier, now = some(MAX_AUTHORITIES + 2)

    bundle = next_bundle(now.pem, text(*earlier), NOW)

    assert bundle.pem == text(now, *earlier[: MAX_AUTHORITIES - 1])
    assert bundle.left_out == 2
    assert len(bundle.pem) < MAX_BUNDLE_BYTES


def test_what_of_the_memory_is_no_authority_is_left_out() -> None:
    before, now = some(2)
    leaf = now.agent("battery").pem.decode()
    broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

    bundle = next_bundle(now.pem, f"who knows\n{broken}{leaf}{text(before)}", NOW)

    assert bundle.pem == text(now, before)


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"who knows", "it holds no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no certificate"),
        (b"x" * (MAX_BUNDLE_BYTES + 1), f"at most {MAX_BUNDLE_BYTES} are read"),
        (Authority("a").agent("battery").pem, "is no authority's"),
        (text(*some(MAX_AUTHORITIES + 1)).encode(), f"at most {MAX_AUTHORITIES} are taken"),
    ],
    ids=["empty", "blank", "no PEM", "broken", "too long", "an agent's", "too many"],
)
def test_what_is_no_authority_is_not_told(pem: bytes, why: str) -> None:
    (before,) = some(1)

    with pytest.raises(BadAuthorityError, match=why):
        next_bundle(pem, text(before), NOW)
