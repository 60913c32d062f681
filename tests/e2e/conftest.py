"""Fixtures of the end-to-end tests: one stack for all, a namespace and an asset for each test."""

import itertools
from collections.abc import Iterator

import pytest
from tests.e2e.acting import Pilot
from tests.stack.stack import Stack

_numbers = itertools.count(1)


@pytest.fixture
def pilot(stack: Stack) -> Iterator[Pilot]:
    """Return a namespace of its own on the shared stack; it is deleted afterwards."""
    with Pilot.created(stack, f"e2e-{next(_numbers)}") as pilot:
        yield pilot
