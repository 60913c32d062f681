"""A namespace of its own for each test file, on the shared control plane."""

import itertools
from collections.abc import Iterator
from typing import Any

import kubernetes
import pytest
from tests.crds.api import Api
from tests.stack.controlplane import ControlPlane

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def client(kube: ControlPlane) -> Iterator[Any]:
    with kubernetes.config.new_client_from_config(kube.kubeconfig) as opened:
        yield opened


@pytest.fixture
def api(client: Any) -> Api:
    """Return our kinds in a namespace that has nothing in it."""
    namespace = f"crds-{next(_numbers)}"
    kubernetes.client.CoreV1Api(client).create_namespace({"metadata": {"name": namespace}})
    return Api(client, namespace)
