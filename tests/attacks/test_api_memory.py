"""Attacks on the memory of the API by whoever may write DERAssets in a namespace of their own."""

import asyncio
import sys
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client
from tests.crds.manifests import BATTERY, merged

from derops.observability import Readiness
from derops_headend.api import watch
from derops_headend.api.assets import AssetFilter, choose, read_asset
from derops_headend.api.kube import Kube
from derops_headend.api.watch import MOST_LISTED, MOST_LISTED_BYTES

USUAL, FAT = 150, 60
BALLAST = {"example.com/ballast": "x" * 250_000}


def names() -> list[str]:
    return [f"usual-{n}" for n in range(USUAL)] + [f"fat-{n}" for n in range(FAT)]


async def list_assets(request: web.Request) -> web.Response:
    """Answer as the API server does: so many objects from there on as were asked for."""
    begin, limit = int(request.query.get("continue", 0)), int(request.query["limit"])
    items = []
    for name in names()[begin : begin + limit]:
        metadata: dict[str, Any] = {
            "namespace": "a",
            "name": name,
            "uid": name,
            "resourceVersion": "1",
            "generation": 1,
        }
        metadata |= {"creationTimestamp": "2026-11-30T00:00:00Z"}
        if name.startswith("fat"):
            metadata |= {"annotations": BALLAST}
        items.append(merged(BATTERY, {"metadata": metadata}))
    end = begin + limit
    rest = {"continue": str(end)} if end < USUAL + FAT else {}
    return web.json_response({"items": items, "metadata": {"resourceVersion": "9"} | rest})


async def test_assets_that_are_as_large_as_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """R140: an API that starts reads them in pages; of a hundred each may have 1.5 MiB."""
    sizes: list[int] = []
    counts: list[int] = []
    parse = watch.parse

    def note(body: bytes) -> dict[str, object]:
        page = parse(body)
        sizes.append(len(body))
        counts.append(len(page["items"]))
        return page

    monkeypatch.setattr(watch, "parse", note)
    app = web.Application()
    app.router.add_get("/apis/derops.io/v1alpha1/derassets", list_assets)
    async with TestServer(app) as server:
        kube = Kube(client.Configuration(host=str(server.make_url(""))), Readiness())
        await asyncio.wait_for(kube._assets._list(), 100)
        await kube.close()

    assert max(sizes) <= MOST_LISTED_BYTES
    assert counts[0] == MOST_LISTED
    assert {each.name for each in kube.assets(["a"])} == set(names())


def test_what_is_kept_of_an_asset_and_of_a_page() -> None:
    """R150: labels without end, which take ten times their bytes; and a page of full assets."""
    many = {f"l{number:x}": "" for number in range(1000)}
    few = {"l": "x" * 10_000}
    assets = []
    for number, labels in enumerate([many] * 500 + [few] * 500):
        metadata: dict[str, Any] = {
            "namespace": "a",
            "name": f"a-{number:04}",
            "uid": "u",
            "resourceVersion": "1",
            "generation": 1,
        }
        metadata |= {"creationTimestamp": "2026-11-30T00:00:00Z", "labels": labels}
        assets.append(read_asset(merged(BATTERY, {"metadata": metadata})))
    for each in assets:
        kept = sys.getsizeof(each.body) + sys.getsizeof(each.labels)
        assert kept + sum(map(sys.getsizeof, each.labels)) < 32 * 1024

    found: list[str] = []
    after = None
    while True:
        page = choose(assets, AssetFilter(), 500, after)
        assert sum(len(each.body) for each in page.assets) <= 2 * 1024**2
        found += [each.name for each in page.assets]
        if page.next is None:
            break
        after = page.next
    assert found == [each.name for each in assets]
