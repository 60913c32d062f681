"""What of a change counts before it is on the disk, and what goes on without a disk. Pure.

Nothing begins that is not stored: after a crash nobody would know of it. What ends, what is
withdrawn and what a device did cannot wait for room on a disk.
"""

from dataclasses import replace

from derops_agent.execution.state import Execution, Stage
from derops_agent.execution.windows import Executions


def counts_unstored(before: Execution | None, after: Execution) -> bool:
    """Tell whether a change counts although the ledger does not take it.

    All do but beginnings: a new order, and the intent to write one that waits.

    Args:
        before: As it was; None = nobody knew of it.
        after: As it is to be.
    """
    if before is None:
        return False
    return not (before.stage is Stage.WAITING and after.stage is Stage.APPLYING)


def is_progress(before: Execution, after: Execution) -> bool:
    """Tell whether a change is mere progress between two transitions: nothing of it is told.

    That is what samples show, and that the device holds it on. It may be lost, and is stored now
    and then.
    """
    effect = replace(after.effect, told=before.effect.told)
    return after == replace(before, confirmed=after.confirmed, effect=effect)


def under_way(executions: Executions) -> dict[str, Execution]:
    """Return what goes on while nothing can be stored: what the device holds, or may take yet."""
    return {uid: e for uid, e in executions.items() if e.may_be_on_device or e.may_land}
