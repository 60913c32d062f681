"""What refusals of the API server become, by its own words."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derops_headend.api.problems import Slug
from derops_headend.api.refusals import REPEAT_WITH_THE_SAME_KEY, pointer, refused


def status(code: int, message: str = "", causes: Any = None, **details: Any) -> bytes:
    return json.dumps(
        {"code": code, "message": message, "details": {"causes": causes, **details}}
    ).encode()


def cause(field: str, message: str, reason: str = "FieldValueInvalid") -> dict[str, str]:
    return {"field": field, "message": message, "reason": reason}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("spec.setpoint.maxLoadWatts", "/setpoint/maxLoadWatts"),
        ("spec.assetRef.name", "/asset"),
        ("spec.assetRef", "/asset"),
        ("metadata.name", "/name"),
        ("spec.parts[3].name", "/parts/3/name"),
        ("metadata.annotations", None),
        ("<nil>", None),
    ],
)
def test_a_field_is_pointed_at_where_the_caller_wrote_it(field: str, expected: str | None) -> None:
    assert pointer(field) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Invalid value: 0: spec.durationSeconds in body should be greater than or equal to 1",
            "should be greater than or equal to 1",
        ),
        (
            "Invalid value: \"Battery.7\": spec.assetRef.name in body should match '^[a-z]'",
            "should match '^[a-z]'",
        ),
        (
            'Invalid value: "a\\": b": spec.startTime in body must be of type date-time: "a\\": b"',
            "must be of type date-time",
        ),
        (
            'Invalid value: {"mode":"LoadLimit: x"}: maxLoadWatts is required with mode LoadLimit',
            "maxLoadWatts is required with mode LoadLimit",
        ),
        ('Unsupported value: "x": supported values: "A", "B"', 'supported values: "A", "B"'),
        (
            'Invalid value: "object": parsing time "no": cannot parse "no" as "2006" evaluating '
            "rule: startTime must lie in the years 2000 to 2199",
            "startTime must lie in the years 2000 to 2199",
        ),
        ("Required value", "is required"),
        ("Required value: maxLoadWatts is required", "maxLoadWatts is required"),
        ("Forbidden: only with mode LoadLimit", "only with mode LoadLimit"),
        ("Too long: may not be more than 63 bytes", "may not be more than 63 bytes"),
        ('Invalid value: "never ends', "is not a valid value"),
    ],
)
def test_what_is_wrong_is_said_without_what_was_sent(message: str, expected: str) -> None:
    problem = refused(422, status(422, causes=[cause("spec.durationSeconds", message)]))
    assert problem.slug is Slug.INVALID
    assert [each.detail for each in problem.faults] == [expected]


def test_a_cause_of_no_field_is_left_out() -> None:
    causes = [cause("<nil>", "some validation rules were not checked"), cause("spec.primacy", "x")]
    assert [each.pointer for each in refused(422, status(422, causes=causes)).faults] == [
        "/primacy"
    ]


def test_another_object_of_the_same_name_is_a_conflict() -> None:
    causes = [cause("metadata.uid", 'Invalid value: "u": field is immutable')]
    assert refused(422, status(422, causes=causes)).slug is Slug.CONFLICT


def test_fields_that_the_crd_does_not_have_are_named() -> None:
    message = 'strict decoding error: unknown field "spec.a.b", duplicate field "spec.primacy"'
    problem = refused(400, status(400, message))
    assert problem.slug is Slug.INVALID
    assert [(each.pointer, each.code) for each in problem.faults] == [
        ("/a/b", "UnknownField"),
        ("/primacy", "DuplicateField"),
    ]


@pytest.mark.parametrize(
    ("code", "slug"),
    [
        (401, Slug.KUBERNETES_UNAVAILABLE),
        (403, Slug.FORBIDDEN),
        (404, Slug.NOT_FOUND),
        (409, Slug.CONFLICT),
        (410, Slug.PAGE_EXPIRED),
        (413, Slug.TOO_LARGE),
        (429, Slug.TOO_MANY_REQUESTS),
        (500, Slug.KUBERNETES_UNAVAILABLE),
        (503, Slug.KUBERNETES_UNAVAILABLE),
        (504, Slug.KUBERNETES_UNAVAILABLE),
    ],
)
def test_each_status_has_its_problem(code: int, slug: Slug) -> None:
    assert refused(code, status(code)).slug is slug


def test_a_refusal_says_what_kubernetes_says() -> None:
    assert refused(403, status(403, "exceeded quota: few")).detail == "exceeded quota: few"


def test_how_long_to_wait_is_what_kubernetes_says() -> None:
    assert refused(429, status(429, retryAfterSeconds=7)).retry_after_seconds == 7
    assert refused(429, status(429, retryAfterSeconds=10**9)).retry_after_seconds == 1
    assert refused(503, status(503)).retry_after_seconds == 5


def test_a_create_without_an_answer_is_to_be_repeated_with_its_key() -> None:
    assert refused(504, b"", creating=True).detail == REPEAT_WITH_THE_SAME_KEY


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(
    code=st.integers(400, 599),
    body=st.binary(max_size=100)
    | st.builds(lambda each: json.dumps(each).encode(), _JSON)
    | st.builds(lambda causes, message: status(400, message, causes), _JSON, st.text(max_size=50))
    | st.just(b"[" * 5000),
)
def test_whatever_answers_a_problem_comes_of_it(code: int, body: bytes) -> None:
    assert refused(code, body).slug.status >= 400


@given(value=st.text(min_size=3, max_size=30))
def test_no_value_comes_back(value: str) -> None:
    sent = f"~{value}~"
    echoes = [
        f"Invalid value: {json.dumps(sent)}: spec.x in body should match 'y'",
        f"Invalid value: {json.dumps({'mode': sent})}: should be so",
        f'Unsupported value: {json.dumps(sent)}: supported values: "A"',
        f"Invalid value: {json.dumps(sent)}: spec.x in body must be of type d: {json.dumps(sent)}",
    ]
    causes = [cause("spec.x", each) for each in echoes]
    for fault in refused(422, status(422, causes=causes)).faults:
        assert sent not in fault.detail
