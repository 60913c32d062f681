"""Fixtures of the cluster tests: the cluster, derops installed in it, and a namespace of assets."""

import itertools
import os
from collections.abc import Iterator

import pytest
from tests.cluster import installing
from tests.cluster.cluster import Cluster
from tests.cluster.site import Site

TEST_SECONDS = 600
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests in the cluster more time than those of processes; from nothing comes first."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")
    for item in items:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(scope="session")
def bare() -> Iterator[Cluster]:
    """Return the cluster without anything of derops in it, once; it is swept again at the end.

    With DEROPS_STACK_KEEP set what is there stays, for a look and for the next run.
    """
    cluster = Cluster.find()
    if cluster.kind is None and (there := installing.left_cluster_wide(cluster)):
        pytest.exit(f"derops is in this cluster, and these tests would sweep it: {there}", 1)
    keep = os.environ.get("DEROPS_STACK_KEEP")
    if not keep:
        installing.remove(cluster)
    yield cluster
    if not keep:
        installing.remove(cluster)


@pytest.fixture
def empty(bare: Cluster) -> Iterator[Cluster]:
    """Return the cluster without derops; what the test leaves half-installed is swept."""
    installing.remove(bare)
    yield bare
    installing.remove(bare)


@pytest.fixture
def cluster(bare: Cluster) -> Cluster:
    """Return the cluster with derops installed by its chart and all parts ready."""
    installing.ensure_installed(bare)
    return bare


@pytest.fixture
def site(cluster: Cluster) -> Iterator[Site]:
    """Return a namespace for assets of its own; it is deleted afterwards."""
    site = Site(cluster, f"site-{next(_numbers)}")
    site.create_namespace()
    yield site
    site.delete_everything()
