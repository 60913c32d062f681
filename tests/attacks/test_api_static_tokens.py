"""Attacks on the API with static tokens: guessed, over, withdrawn, or read where they passed by."""

import hashlib
import json
import secrets
import statistics
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.api.fixtures import StartApi
from tests.api.rig import problem
from tests.stack.mounts import write_mount

from derops.observability import Readiness
from derops_headend.api.callers.static import StaticTokens

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def make(name: str) -> str:
    return f"drp_{name}.{secrets.token_urlsafe(32)}"


def entry(token: str, **changes: Any) -> bytes:
    """Return what the Secret holds for a token."""
    known = {
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
        "user": "meter-reader",
        "groups": ["readers"],
        "expires": (NOW + timedelta(days=30)).isoformat(),
    }
    return json.dumps(known | changes).encode()


def read(directory: Path, now: datetime = NOW) -> tuple[StaticTokens, Readiness]:
    readiness = Readiness()
    tokens = StaticTokens(directory, readiness, lambda: now)
    tokens.look()
    return tokens, readiness


def test_a_token_names_its_caller(tmp_path: Path) -> None:
    token = make("ops-1")
    write_mount(tmp_path, {"ops-1": entry(token)})

    caller = read(tmp_path)[0].caller_of(token)

    assert caller is not None
    assert (caller.name, caller.groups) == ("static:meter-reader", ("readers",))
    assert (caller.kind, caller.token_id) == ("Static", "ops-1")
    assert caller.expires_at == NOW + timedelta(days=30)


def test_what_is_no_token_is_nobodys(tmp_path: Path) -> None:
    """R48: a static token is guessed, cut, lengthened, or shown under another id."""
    token = make("ops-1")
    write_mount(tmp_path, {"ops-1": entry(token), "ops-2": entry(make("ops-2"))})
    tokens, _ = read(tmp_path)

    secret = token.partition(".")[2]
    for wrong in (
        make("ops-1"), make("ops-3"), token[:-1], f"{token}a", f"drp_ops-2.{secret}",
        f"drp_.{secret}", f"drp_../ops-1.{secret}", f"drp_ops-1.{secret}\n", "drp_ops-1.",
    ):  # fmt: skip
        assert tokens.caller_of(wrong) is None, wrong


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"expires": "2027-03-01T00:00:00Z"}, "more than 90 days"),
        ({"expires": None}, "expires"),
        ({"expires": "2026-12-01T00:00:00"}, "timezone"),
        ({"groups": ["system:masters"]}, "system:"),
        ({"groups": ["x y"]}, "groups.0"),
        ({"groups": ["g"] * 201}, "groups"),
        ({"user": "a\nb"}, "user"),
        ({"user": ""}, "user"),
        ({"sha256": "ABC"}, "sha256"),
        ({"admin": True}, "admin"),
    ],
)
def test_an_entry_that_is_wrong_opens_nothing_and_is_told(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    bad, good = make("bad"), make("good")
    write_mount(tmp_path, {"bad": entry(bad, **changes), "good": entry(good)})

    tokens, readiness = read(tmp_path)

    assert tokens.caller_of(bad) is None
    assert tokens.caller_of(good) is not None
    is_ready, report = readiness.report()
    assert is_ready
    assert says in report.partition("bad: ")[2]


def test_a_token_that_is_over(tmp_path: Path) -> None:
    """R49: a static token is used after its end."""
    token = make("ops-1")
    write_mount(tmp_path, {"ops-1": entry(token, expires=NOW.isoformat())})

    assert read(tmp_path)[0].caller_of(token) is None
    assert read(tmp_path, NOW - timedelta(seconds=1))[0].caller_of(token) is not None


def test_time_does_not_tell_whether_an_id_is_known(tmp_path: Path) -> None:
    """R58: the time that a refusal takes is to tell which ids there are."""
    write_mount(tmp_path, {f"known-{n}": entry(make(f"known-{n}")) for n in range(20)})
    tokens, _ = read(tmp_path)
    wrong = {name: make(name) for name in ("known-7", "other-7")}

    def nanoseconds(name: str) -> int:
        begun = time.perf_counter_ns()
        tokens.caller_of(wrong[name])
        return time.perf_counter_ns() - begun

    samples: dict[str, list[int]] = {"known-7": [], "other-7": []}
    for _ in range(10_000):
        for name, taken in samples.items():
            taken.append(nanoseconds(name))

    known, other = (statistics.median(taken) for taken in samples.values())
    assert abs(known - other) < 0.2 * other  # of some microseconds, below any network's noise


def test_a_withdrawn_token_and_what_is_left_of_it(start_api: StartApi, tmp_path: Path) -> None:
    """R59: a token is used after the Secret lost it; or is looked for in logs and records."""
    token = make("ops-1")
    expires = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    write_mount(tmp_path / "secret", {"ops-1": entry(token, expires=expires)})
    api = start_api(static_tokens_directory=str(tmp_path / "secret"), log_level="DEBUG")

    with api.client(token) as client:
        answer = client.get("/v1/me")
        assert answer.json()["name"] == "static:meter-reader", answer.text
        problem(client.get("/v1/nothing"), 404, "not-found")
        write_mount(tmp_path / "secret", {"ops-2": entry(make("ops-2"), expires=expires)})
        begun = time.monotonic()
        while client.get("/v1/me").status_code == 200:
            assert time.monotonic() - begun < 60
            time.sleep(0.2)
        problem(client.get("/v1/me"), 401, "unauthenticated")

    secret = token.partition(".")[2].encode()
    files = [each for each in api.directory.rglob("*") if each.is_file()]
    assert any(b"static:meter-reader" in each.read_bytes() for each in files)
    assert [each for each in files if secret in each.read_bytes()] == []
