"""How DERAssets are kept, chosen and shown."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.crds.manifests import BATTERY, merged

from derops_headend.api.assets import (
    MOST_BYTES,
    AssetFilter,
    KnownAsset,
    Sort,
    choose,
    read_asset,
    view_of,
)
from derops_headend.api.problems import ProblemError, Slug

METADATA = {
    "namespace": "pilot",
    "uid": "uid-1",
    "resourceVersion": "7",
    "generation": 2,
    "creationTimestamp": "2026-12-01T18:00:00Z",
}


def manifest(**patch: Any) -> dict[str, Any]:
    return merged(merged(BATTERY, {"metadata": METADATA}), patch)


def known(namespace: str, name: str, **others: Any) -> KnownAsset:
    fields: dict[str, Any] = {
        "uid": f"uid-{namespace}-{name}",
        "resource_version": "1",
        "type": "Battery",
        "operating_state": "InService",
        "ready": "True",
        "connected": "Unknown",
        "labels": {},
        "body": b"{}",
        **others,
    }
    return KnownAsset(namespace=namespace, name=name, **fields)


def test_an_asset_is_shown_with_its_defaults() -> None:
    view = view_of(read_asset(manifest()))
    assert view.spec is not None
    assert view.spec.limits.on_exceed == "Reject"
    assert view.problem is None
    assert view.created_at is not None


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"spec": {"type": "Kettle-of-a-tenant"}}, "type"),
        ({"spec": None}, "KeyError"),
        ({"status": {"conditions": "none"}}, "observedGeneration"),
        ({"metadata": {"creationTimestamp": "never"}}, "ValueError"),
        ({"metadata": {"labels": {"a": "x" * MOST_BYTES}}}, "bytes"),
    ],
)
def test_what_cannot_be_read_is_there_and_says_why(patch: dict[str, Any], said: str) -> None:
    asset = read_asset(manifest(**patch))

    assert (asset.namespace, asset.name, asset.uid) == ("pilot", "battery-7", "uid-1")
    assert said in str(view_of(asset).problem)
    assert "Kettle" not in asset.body.decode()
    assert len(asset.body) < 1000
    assert asset.labels == {}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(spec=_JSON, status=_JSON, labels=_JSON)
def test_whatever_is_in_it_it_has_a_body(spec: Any, status: Any, labels: Any) -> None:
    asset = read_asset(
        {
            "metadata": {**METADATA, "name": "a", "labels": labels},
            "spec": spec,
            "status": status,
        }
    )
    assert json.loads(asset.body)["name"] == "a"
    assert len(asset.body) <= MOST_BYTES


SOME = [
    known("a", "one", type="Solar", labels={"site": "north", "ring": ""}),
    known("a", "two", connected="True"),
    known("b", "one", operating_state="OutOfService", ready="False"),
]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (AssetFilter(), ["a/one", "b/one", "a/two"]),
        (AssetFilter(descending=True), ["a/two", "b/one", "a/one"]),
        (AssetFilter(type="Solar"), ["a/one"]),
        (AssetFilter(connected="True"), ["a/two"]),
        (AssetFilter(ready="False"), ["b/one"]),
        (AssetFilter(operating_state="OutOfService"), ["b/one"]),
        (AssetFilter(labels=[("site", "north")]), ["a/one"]),
        (AssetFilter(labels=[("site", "south")]), []),
        (AssetFilter(labels=[("ring", None), ("site", None)]), ["a/one"]),
        (AssetFilter(labels=[("ring", ""), ("site", "north")]), ["a/one"]),
        (AssetFilter(text="TW"), ["a/two"]),
        (AssetFilter(sort=Sort.TYPE), ["a/two", "b/one", "a/one"]),
    ],
)
def test_a_list_has_what_is_wanted_in_its_order(wanted: AssetFilter, names: list[str]) -> None:
    page = choose(SOME, wanted, 10, None)
    assert [f"{each.namespace}/{each.name}" for each in page.assets] == names
    assert page.next is None


@given(
    names=st.sets(st.tuples(st.sampled_from("abc"), st.text("xyz", min_size=1, max_size=4))),
    limit=st.integers(1, 5),
    sort=st.sampled_from(Sort),
    descending=st.booleans(),
    types=st.lists(st.sampled_from(["Solar", "Battery", ""]), min_size=1),
)
def test_pages_have_each_asset_once(
    names: set[tuple[str, str]], limit: int, sort: Sort, descending: bool, types: list[str]
) -> None:
    some = [
        known(namespace, name, type=types[number % len(types)])
        for number, (namespace, name) in enumerate(sorted(names))
    ]
    wanted = AssetFilter(sort=sort, descending=descending)
    paged: list[KnownAsset] = []
    after = None
    while True:
        page = choose(some, wanted, limit, after)
        paged += page.assets
        after = page.next
        if after is None:
            break
    assert paged == choose(some, wanted, 1000, None).assets
    assert len(paged) == len(some)


@given(after=st.text(max_size=50) | st.sampled_from(["bnVsbA", "WzEsMiwzXQ", "W1td"]))
def test_a_page_that_is_none_of_ours_is_refused(after: str) -> None:
    with pytest.raises(ProblemError) as refused:
        choose(SOME, AssetFilter(), 10, after)
    assert refused.value.slug is Slug.INVALID
    assert refused.value.faults[0].parameter == "after"
