"""The links that all assets share, by what the operator says of the installation. Pure."""

from datetime import datetime

from derops.data_path import Link, SeenFault, SharedFault
from derops.installation import CONFIG_MAP, LINKS, RENEWED_EVERY_SECONDS, SILENT_AFTER_SECONDS
from derops_cli.diagnosis import OPERATOR, Finding, LinkJudgement, Standing
from derops_cli.evidence import Installation, Missing, Surroundings, Workload
from derops_cli.words import clean, duration, instant

CONDITION_OF = {link: condition for condition, link in LINKS.items()}
"""Which condition of the installation tells of each link."""

LATE_SECONDS = RENEWED_EVERY_SECONDS + 30
"""How old its word may be where Kubernetes shows that no pod of the operator is ready."""

_PROGRAM_OF = {
    OPERATOR: ("derops-operator",),
    Link.GATEWAY: ("derops-headend",),
    Link.WRITER: ("derops-headend",),
    Link.DATABASE: ("derops-postgresql",),
}


def judge_operator(seen: Surroundings, at: datetime) -> LinkJudgement:
    """Return whether the operator writes, on which all rests that Kubernetes says."""
    programs = workload_findings(seen, OPERATOR)
    found = seen.installation
    if isinstance(found, Installation):
        age_seconds = (at - found.observed_at).total_seconds()
        limit_seconds = LATE_SECONDS if _nothing_runs(seen) else SILENT_AFTER_SECONDS
        word = Finding(
            what=f"ConfigMap {CONFIG_MAP}: observedAt",
            value=instant(found.observed_at),
            age_seconds=age_seconds,
            limit_seconds=limit_seconds,
        )
        if age_seconds > limit_seconds:
            why = f"the operator has said nothing since {instant(found.observed_at)}"
            return LinkJudgement(
                link=OPERATOR,
                standing=Standing.BROKEN,
                reason=SeenFault.OPERATOR_SILENT,
                why=why,
                findings=(word, *programs),
            )
        return LinkJudgement(
            link=OPERATOR,
            standing=Standing.HOLDS,
            why=f"it wrote {duration(age_seconds)} ago",
            findings=(word, *programs),
        )
    if found.absent and _nothing_runs(seen):
        return LinkJudgement(
            link=OPERATOR,
            standing=Standing.BROKEN,
            reason=SeenFault.OPERATOR_SILENT,
            why="no pod of the operator is ready",
            findings=programs,
        )
    return LinkJudgement(
        link=OPERATOR, standing=Standing.NOT_LOOKED_AT, why=found.why, findings=programs
    )


def judge_shared(link: Link, seen: Surroundings, *, operator_silent: bool) -> LinkJudgement:
    """Return what is known of a link that all assets share."""
    programs, found = workload_findings(seen, link), seen.installation
    if isinstance(found, Missing):
        return LinkJudgement(
            link=link, standing=Standing.NOT_LOOKED_AT, why=found.why, findings=programs
        )
    condition = found.find(CONDITION_OF[link])
    if condition is None:
        return LinkJudgement(
            link=link,
            standing=Standing.NOT_LOOKED_AT,
            why="the operator says nothing of it",
            findings=programs,
        )
    said = Finding(
        what=f"condition {condition.type}",
        value=f"{condition.status}, {clean(condition.reason)}, since "
        f"{instant(condition.last_transition_time)}",
    )
    reason = clean(condition.reason)
    message = clean(condition.message) or reason
    if operator_silent:
        why = f"the operator is silent; its last word was {condition.status} ({reason})"
        standing = Standing.NOT_LOOKED_AT
    elif condition.status == "Unknown":
        standing, why = Standing.NOT_LOOKED_AT, f"{reason}: {message}"
    else:
        holds = condition.status == "True"
        standing, why = (Standing.HOLDS if holds else Standing.BROKEN), message
    if standing is not Standing.BROKEN:
        reason = ""
    return LinkJudgement(
        link=link, standing=standing, reason=reason, why=why, findings=(said, *programs)
    )


def doubt_database(judged: LinkJudgement) -> LinkJudgement:
    """Return the judgement of the database where the API does not reach it."""
    said = Finding(what="API", value="its database does not answer")
    if judged.standing is not Standing.NOT_LOOKED_AT:
        return LinkJudgement(
            link=judged.link,
            standing=judged.standing,
            reason=judged.reason,
            why=judged.why,
            findings=(*judged.findings, said),
        )
    return LinkJudgement(
        link=judged.link,
        standing=Standing.BROKEN,
        reason=SharedFault.DATABASE_UNREACHABLE,
        why="the API gets no answer from its database",
        findings=(*judged.findings, said),
    )


def workload_findings(seen: Surroundings, link: str) -> tuple[Finding, ...]:
    """Return what Kubernetes shows of the programs of a link; nothing where it shows none."""
    if isinstance(seen.workloads, Missing):
        return ()
    return tuple(
        Finding(what=f"{each.kind} {each.name}", value=_state(each))
        for each in seen.workloads
        if any(each.name.startswith(name) for name in _PROGRAM_OF.get(link, ()))
        and (each.kind != "Pod" or each.ready < each.wanted)
    )


def _state(workload: Workload) -> str:
    words = f"{workload.ready} of {workload.wanted} ready"
    if workload.restarts:
        words += f", {workload.restarts} restarts"
    return words + (f": {clean(workload.problem)}" if workload.problem else "")


def _nothing_runs(seen: Surroundings) -> bool:
    if isinstance(seen.workloads, Missing):
        return False
    ours = [each for each in seen.workloads if each.kind == "Deployment"]
    return any(each.name == "derops-operator" and not each.ready for each in ours)
