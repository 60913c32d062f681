"""A rule of a CRD as a test sees it: one change that breaks it and one that just does not."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.crds.api import Cause, RefusedError
from tests.crds.manifests import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Patches are JSON merge patches on a good manifest, or on what is stored.

    For a rule about changes, ``stored`` is what the good manifest is first created with.
    """

    path: str
    message: str
    refused: Manifest
    accepted: Manifest
    stored: Manifest = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def spec(**fields: Any) -> Manifest:
    return {"spec": fields}


def ids(rules: list[Rule]) -> list[str]:
    """Return readable, distinct names for the rules of a table."""
    return [f"{number:02}-{rule.path}" for number, rule in enumerate(rules, start=1)]


def assert_names(error: pytest.ExceptionInfo[RefusedError], rule: Rule) -> None:
    """Assert that a refusal is for this rule and says so at the right field."""
    refusal = error.value
    assert refusal.code == 422, refusal.message
    assert any(_is_about(cause, rule) for cause in refusal.causes), refusal.causes
    assert rule.message in refusal.message


def _is_about(cause: Cause, rule: Rule) -> bool:
    return cause.field == rule.path and rule.message in cause.message
