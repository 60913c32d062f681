"""Manifests to facts: what many objects say alike is kept once."""

from typing import Any

from tests.operator.making import metadata

from derops_operator.facts import Asset, Kind
from derops_operator.reading import read_fact

CONDITION = {"type": "Ready", "status": "True", "reason": "Stored", "observedGeneration": 1}


def read(name: str, status: dict[str, Any], **fields: Any) -> Asset:
    spec = {"type": "Load", "ratings": {"maxInjectionWatts": 0, "maxAbsorptionWatts": 8000}}
    manifest = {"metadata": metadata(name, **fields), "spec": spec, "status": status}
    fact = read_fact(Kind.ASSET, manifest, 0)
    assert isinstance(fact, Asset)
    return fact


def test_equal_conditions_of_many_objects_are_one_object() -> None:
    one = read("one", {"conditions": [dict(CONDITION)]})
    two = read("two", {"conditions": [dict(CONDITION)]})

    assert one.status["conditions"] == [CONDITION]
    assert one.status["conditions"][0] is two.status["conditions"][0]


def test_true_is_not_taken_for_one() -> None:
    read("one", {"capability": {"value": True}})

    assert read("two", {"capability": {"value": 1}}).status["capability"]["value"] is not True


def test_managed_fields_are_not_even_looked_at() -> None:
    class Untouchable(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("read")

    fact = read("one", {}, managedFields=Untouchable([{}]))

    assert fact.meta.name == "one"
