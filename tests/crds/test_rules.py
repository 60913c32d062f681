"""Each rule of the CRDs, on a real API server: what it refuses, what it lets pass, what it says."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.crds import asset_rules, dispatch_rules
from tests.crds.api import Api, RefusedError
from tests.crds.manifests import BATTERY, DISPATCH, Manifest, merged, schema
from tests.crds.rules import Rule, assert_names, ids

from derops.checks import MODES_BY_TYPE

OF_ASSETS = [*asset_rules.EXPRESSIONS, *asset_rules.FALLBACKS, *asset_rules.BOUNDS]
OF_DISPATCHES = [*dispatch_rules.EXPRESSIONS, *dispatch_rules.BOUNDS]

FALLBACK_MODES = {
    "activePowerWatts": "ActivePower",
    "maxGenerationWatts": "GenerationLimit",
    "maxLoadWatts": "LoadLimit",
}


@pytest.mark.parametrize("rule", OF_ASSETS, ids=ids(OF_ASSETS))
def test_an_asset_is_refused_beyond_a_rule_and_taken_within(api: Api, rule: Rule) -> None:
    check_creation(api, BATTERY, rule)


@pytest.mark.parametrize("rule", OF_DISPATCHES, ids=ids(OF_DISPATCHES))
def test_a_dispatch_is_refused_beyond_a_rule_and_taken_within(api: Api, rule: Rule) -> None:
    check_creation(api, DISPATCH, rule)


@pytest.mark.parametrize("rule", asset_rules.CHANGES, ids=ids(asset_rules.CHANGES))
def test_a_change_of_an_asset_is_refused_or_taken(api: Api, rule: Rule) -> None:
    check_change(api, BATTERY, rule)


@pytest.mark.parametrize("rule", dispatch_rules.CHANGES, ids=ids(dispatch_rules.CHANGES))
def test_a_change_of_a_dispatch_is_refused_or_taken(api: Api, rule: Rule) -> None:
    check_change(api, DISPATCH, rule)


@pytest.mark.parametrize("rule", dispatch_rules.STATUS, ids=ids(dispatch_rules.STATUS))
def test_a_status_of_a_dispatch_is_refused_or_taken(api: Api, rule: Rule) -> None:
    stored = api.create(DISPATCH)
    if rule.stored:
        api.patch_status(stored, rule.stored)

    with pytest.raises(RefusedError) as refusal:
        api.patch_status(stored, rule.refused)
    api.patch_status(stored, rule.accepted)

    assert_names(refusal, rule)


@pytest.mark.parametrize("kind", MODES_BY_TYPE)
def test_a_fallback_is_taken_for_just_the_modes_that_a_type_has(api: Api, kind: str) -> None:
    base = BATTERY if kind == "Battery" else merged(BATTERY, asset_rules.of_type(kind))
    for name, mode in FALLBACK_MODES.items():
        manifest = merged(base, {"spec": {"fallback": {name: 0}}})
        if mode in MODES_BY_TYPE[kind]:
            api.create(manifest, dry_run=True)
        else:
            with pytest.raises(RefusedError, match=f"{name} may only be set for"):
                api.create(manifest, dry_run=True)


@pytest.mark.parametrize("phase", ["Expired", "Failed", "Rejected", "Cancelled", "Superseded"])
def test_every_terminal_phase_is_final(api: Api, phase: str) -> None:
    stored = api.create(DISPATCH)
    api.patch_status(stored, {"phase": phase, "completionTime": dispatch_rules.ENDED})

    with pytest.raises(RefusedError, match="phase cannot change once the Dispatch has ended"):
        api.patch_status(stored, {"phase": "Complete"})


def test_an_equal_instant_in_another_zone_is_no_change(api: Api) -> None:
    stored = api.create(merged(DISPATCH, {"spec": {"startTime": dispatch_rules.START}}))

    api.patch(stored, {"spec": {"startTime": "2030-12-01T19:00:00+01:00"}})


@pytest.mark.parametrize("manifest", [BATTERY, DISPATCH], ids=lambda each: each["kind"])
def test_a_misspelt_field_is_refused(api: Api, manifest: Manifest) -> None:
    with pytest.raises(RefusedError, match=r'unknown field \\"spec.durationSecond\\"'):
        api.create(merged(manifest, {"spec": {"durationSecond": 5}}))


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        ("DERAsset", [*OF_ASSETS, *asset_rules.CHANGES]),
        ("Dispatch", [*OF_DISPATCHES, *dispatch_rules.CHANGES, *dispatch_rules.STATUS]),
    ],
)
def test_every_expression_of_a_crd_has_its_case(kind: str, rules: list[Rule]) -> None:
    tested = [(rule.path, rule.message) for rule in rules]

    expressions = list(expressions_of(schema(kind), ""))
    untested = [
        (path, message)
        for path, message in expressions
        if not any(path == of and message.startswith(start) for of, start in tested)
    ]

    assert expressions
    assert untested == []


def expressions_of(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the field and the message of each CEL rule below a schema node."""
    for rule in node.get("x-kubernetes-validations", []):
        yield (path + rule["fieldPath"]).lstrip("."), rule["message"]
    for name, inner in node.get("properties", {}).items():
        yield from expressions_of(inner, f"{path}.{name}")


def check_creation(api: Api, good: Manifest, rule: Rule) -> None:
    with pytest.raises(RefusedError) as refusal:
        api.create(merged(good, rule.refused), dry_run=True)
    api.create(merged(good, rule.accepted), dry_run=True)

    assert_names(refusal, rule)


def check_change(api: Api, good: Manifest, rule: Rule) -> None:
    stored = api.create(merged(good, rule.stored))

    with pytest.raises(RefusedError) as refusal:
        api.patch(stored, rule.refused)
    api.patch(stored, rule.accepted)

    assert_names(refusal, rule)
