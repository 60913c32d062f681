"""Manifests to facts: what many objects say alike is kept once."""

import gc
import tracemalloc
from typing import Any

from tests.operator.making import metadata

from derops_operator.resources.assets import Asset
from derops_operator.resources.manifests import read_fact
from derops_operator.resources.objects import Kind

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


def test_annotations_are_not_kept_whatever_their_size() -> None:
    """Nor is anything else that a tenant may make as large as an object may be."""
    tracemalloc.start()
    try:
        kept = []
        for number in range(200):
            large = f"{number:05}" * 40_000
            kept.append(read(f"one-{number}", {}, annotations={"note": large}))
            kept.append(_request(f"two-{number}", large))
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(kept) == 400
    assert held < 4 * 1024**2


def _request(name: str, large: str) -> Any:
    manifest = {
        "metadata": metadata(
            name,
            annotations={"a": large},
            labels={"other": large},
            ownerReferences=[{"kind": "Certificate", "controller": True, "uid": large}],
            finalizers=[f"{large[:9]}{number}" for number in range(1000 * name.count("7"))],
        ),
        "spec": {
            "request": large,
            "issuerRef": {"name": large if "9" in name else "x", "extra": large},
            "extra": {"e": [large]},
        },
        "status": {"ca": large, "certificate": large},
    }
    return read_fact(Kind.REQUEST, manifest, 0)


def test_managed_fields_are_not_even_looked_at() -> None:
    class Untouchable(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("read")

    fact = read("one", {}, managedFields=Untouchable([{}]))

    assert fact.meta.name == "one"
