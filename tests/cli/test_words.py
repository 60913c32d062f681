"""Foreign text on a terminal, and secrets in it."""

import pytest

from derops_cli.scrubbing import MASK, scrub
from derops_cli.words import LONGEST_TEXT, clean, duration

SECRETS = {
    "URL": ("GET https://admin:hunter2@meter.local/x failed", "hunter2"),
    "user in URL": ("postgresql://writer@db/derops", "writer"),
    "password with colon": ("mqtt://u:p%40ss:w0rd@host", "p%40ss"),
    "bearer": ("Authorization: Bearer abc.def.ghi rest", "abc.def.ghi"),
    "basic": ("authorization=Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    "token in query": ("GET /api?token=s3cr3t&x=1", "s3cr3t"),
    "quoted password": ('{"password": "with spaces in it"}', "with spaces in it"),
    "keyword": ("host=db password=hunter2 dbname=x", "hunter2"),
    "JWT": ("got eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln", "eyJzdWIiOiJhIn0"),
    "static token": ("drp_meter-1.abcdefgh", "meter-1.abcdefgh"),
    "PEM": ("-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----", "MIGH"),
    "PEM that is cut off": ("-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE", "MHcCAQEE"),
    "random": ("key AbCdEfGh1234567890abcdEFGH it is", "AbCdEfGh1234567890abcdEFGH"),
    "API key": ("api_key: 12345", "12345"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_a_secret_is_taken_out(text: str, secret: str) -> None:
    found = scrub(text)

    assert secret not in found
    assert MASK in found


@pytest.mark.parametrize(
    "text",
    [
        "certificate 4f3a9c0d2b1e4f3a9c0d2b1e4f3a9c0d is good until 2026-12-30T00:00:00Z",
        "spiffe://derops.test/ns/pilot-north/derasset/battery-7",
        "0b9f2f5e-7f43-4c5e-a8a2-111111111111",
        "unit 3 at 10.0.0.7:502 gave no answer: timed out",
        "maxInjectionWatts",
    ],
)
def test_names_and_numbers_stay(text: str) -> None:
    assert scrub(text) == text


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "bell\x07", "\u202eevil", "\x9b31m", "a\x00b", "\u2028x"]
)
def test_a_foreign_text_controls_no_terminal(text: str) -> None:
    assert clean(text).isprintable()


def test_a_foreign_text_is_one_line_and_bounded() -> None:
    assert clean("a\nb\tc") == "a b c"
    assert len(clean("x" * 100_000)) == LONGEST_TEXT


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"), (-3, "0 s"), (59, "59 s"), (60, "1 min"), (90, "1 min 30 s"),
        (240, "4 min"), (5400, "1 h 30 min"), (86400 * 9, "9 d"), (86400 * 2 + 3600, "2 d 1 h"),
    ],
)  # fmt: skip
def test_a_duration_has_its_unit(seconds: float, words: str) -> None:
    assert duration(seconds) == words
