"""Which executions claim the device: to be put on it, to be taken off it. Pure."""

from collections.abc import Collection, Iterable, Mapping

from derops_agent.execution import windows
from derops_agent.execution.state import Execution, Stage
from derops_agent.execution.windows import Executions


def without(scope: Executions, others: Executions) -> dict[str, Execution]:
    """Return ``scope`` without ``others``; those may be keyed by mode."""
    uids = {e.order.uid for e in others.values()}
    return {uid: execution for uid, execution in scope.items() if uid not in uids}


def starting(owners: Executions) -> bool:
    """Tell whether one of the owners is to be put on the device."""
    return any(e.stage is Stage.APPLYING for e in owners.values())


def wanting(scope: Executions, owners: Executions) -> frozenset[str]:
    """Return the uids of those not started or ended yet, or whose value the device dropped."""
    lacking = {
        e.order.uid for e in owners.values() if e.stage is Stage.APPLYING or e.held_since is None
    }
    return frozenset(ending(scope.values()) | lacking)


def ending(executions: Iterable[Execution]) -> set[str]:
    """Return the uids of those that are to be taken off the device."""
    return {e.order.uid for e in executions if e.stage is Stage.REVERTING}


def to_put_aside(
    scope: Executions,
    staying: Executions,
    *,
    not_taken: Mapping[str, int],
    kept: Collection[str],
    apart: bool,
) -> list[Execution]:
    """Return the starts that are to wait for a later write.

    A start that the device does not take must not keep its predecessor there: the predecessor is
    reverted first. Once the device let go of that, the start is tried once more, as a ramp back
    may outlast its window. Of several starts that the device refuses together, each is to be
    judged by its own value.

    Args:
        scope: All.
        staying: Those whose value stays until the next window of their mode, by mode.
        not_taken: How often the device has not taken a start, by uid.
        kept: Uids of those to end that the device kept when it was told nothing else.
        apart: Whether starts are written one by one.
    """
    starting = starts(scope)
    leaving = ending(without(scope, staying).values()) - set(kept)
    held = [scope[uid] for uid in leaving if scope[uid].held_since]
    tries = {e.order.mode: 2 if e.let_go_monotonic_us else 1 for e in held}
    aside = [
        e
        for e in starting
        if e.order.mode in tries and not_taken.get(e.order.uid, 0) >= tries[e.order.mode]
    ]
    return aside + starting[0 if leaving else 1 :] if apart else aside


def starts(scope: Executions) -> list[Execution]:
    """Return what is to be put on the device, in the order of their uids."""
    return sorted(
        (e for e in windows.owners(scope).values() if e.stage is Stage.APPLYING),
        key=lambda e: e.order.uid,
    )
