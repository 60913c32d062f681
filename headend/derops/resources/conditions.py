"""Conditions: statements about a resource that are True, False or Unknown."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime

from derops.resources.base import Section

MESSAGE_LIMIT = 1024
"""Characters of a message that the CRDs allow."""

ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(Section):
    """One statement, in the shape that ``kubectl wait --for=condition`` reads."""

    type: str
    status: ConditionStatus
    reason: str
    message: str
    observed_generation: int | None = None
    last_transition_time: AwareDatetime


def set_condition(
    conditions: Sequence[Condition],
    type: str,  # noqa: A002 - the field's name in the Kubernetes API
    status: ConditionStatus,
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> list[Condition]:
    """Return ``conditions`` with one of them set.

    Args:
        conditions: What is stored; it is not changed.
        type: Which condition. One that is there keeps its place, a new one comes last.
        status: What it is to say.
        reason: Why, as a CamelCase word.
        message: Why, as a sentence; what is longer than the CRDs allow is cut.
        generation: The ``metadata.generation`` that this was decided on.
        now: Becomes the time of the transition, cut to the second, if the status changes.
    """
    stored = next((each for each in conditions if each.type == type), None)
    wanted = Condition(
        type=type,
        status=status,
        reason=reason,
        message=message[:MESSAGE_LIMIT],
        observed_generation=generation,
        last_transition_time=(
            stored.last_transition_time
            if stored is not None and stored.status == status
            else now.replace(microsecond=0)
        ),
    )
    if stored is None:
        return [*conditions, wanted]
    return [wanted if each is stored else each for each in conditions]
