"""What the API server checks of a Dispatch: each rule with a case on either side of it."""

from tests.crds.asset_rules import ABOVE_ALL, choice, required
from tests.crds.manifests import Manifest
from tests.crds.rules import Rule, spec

START = "2030-12-01T18:00:00Z"
ENDED = "2030-12-01T18:30:00Z"
LATER = "2030-12-01T18:30:01Z"
IMMUTABLE = (
    "a Dispatch is immutable: cancel it and create another "
    "(only desiredState and ttlSecondsAfterFinished may change)"
)

GENERATION = {"mode": "GenerationLimit", "activePowerWatts": None, "maxGenerationWatts": 0}
LOAD = {"mode": "LoadLimit", "activePowerWatts": None, "maxLoadWatts": 0}
CEASE = {"mode": "CeaseToEnergize", "activePowerWatts": None}


def bounds(name: str, lowest: int, highest: int) -> list[Rule]:
    return [
        Rule(
            path=f"spec.{name}",
            message=f"should be greater than or equal to {lowest}",
            refused=spec(**{name: lowest - 1}),
            accepted=spec(**{name: lowest}),
        ),
        Rule(
            path=f"spec.{name}",
            message=f"should be less than or equal to {highest}",
            refused=spec(**{name: highest + 1}),
            accepted=spec(**{name: highest}),
        ),
    ]


def limit_bounds(setpoint: Manifest, name: str) -> list[Rule]:
    """Return the rules of the bounds of a value without sign."""
    return [
        Rule(
            path=f"spec.setpoint.{name}",
            message="should be greater than or equal to 0",
            refused=spec(setpoint={**setpoint, name: -1}),
            accepted=spec(setpoint={**setpoint, name: 0}),
        ),
        Rule(
            path=f"spec.setpoint.{name}",
            message="should be less than or equal to 1000000000000",
            refused=spec(setpoint={**setpoint, name: ABOVE_ALL}),
            accepted=spec(setpoint={**setpoint, name: 10**12}),
        ),
    ]


def start_time(refused: str, accepted: str, message: str) -> Rule:
    return Rule(
        path="spec.startTime",
        message=message,
        refused=spec(startTime=refused),
        accepted=spec(startTime=accepted),
    )


def union(mode: str, name: str, good: Manifest) -> list[Rule]:
    """Return the rules that tie a value to its mode."""
    return [
        Rule(
            path=f"spec.setpoint.{name}",
            message=f"{name} is required with mode {mode}",
            refused=spec(setpoint={**good, name: None}),
            accepted=spec(setpoint=good),
        ),
        Rule(
            path=f"spec.setpoint.{name}",
            message=f"{name} may only be set with mode {mode}",
            refused=spec(setpoint={**CEASE, name: 1000}),
            accepted=spec(setpoint=CEASE),
        ),
    ]


EXPRESSIONS = [
    Rule(
        path="metadata.name",
        message="name must have at most 63 characters",
        refused={"metadata": {"name": "a" * 64}},
        accepted={"metadata": {"name": "a" * 63}},
    ),
    *union("ActivePower", "activePowerWatts", {"mode": "ActivePower", "activePowerWatts": -1}),
    *union("GenerationLimit", "maxGenerationWatts", GENERATION),
    *union("LoadLimit", "maxLoadWatts", LOAD),
    start_time(
        "1999-12-31T23:59:59Z", "2000-01-01T00:00:00Z", "startTime must lie in the years 2000 to"
    ),
    start_time(
        "2200-01-01T00:00:00Z", "2199-12-31T23:59:59Z", "startTime must lie in the years 2000 to"
    ),
]

BOUNDS = [
    *bounds("durationSeconds", 1, 604_800),
    *bounds("startDeadlineSeconds", 0, 604_800),
    *bounds("randomizeStartSeconds", 0, 3600),
    *bounds("reportDeadlineSeconds", 1, 604_800),
    *bounds("primacy", 0, 255),
    *bounds("ttlSecondsAfterFinished", 0, 315_360_000),
    *limit_bounds(GENERATION, "maxGenerationWatts"),
    *limit_bounds(LOAD, "maxLoadWatts"),
    Rule(
        path="spec.setpoint.activePowerWatts",
        message="should be greater than or equal to -1000000000000",
        refused=spec(setpoint={"activePowerWatts": -ABOVE_ALL}),
        accepted=spec(setpoint={"activePowerWatts": -(10**12)}),
    ),
    Rule(
        path="spec.setpoint.activePowerWatts",
        message="should be less than or equal to 1000000000000",
        refused=spec(setpoint={"activePowerWatts": ABOVE_ALL}),
        accepted=spec(setpoint={"activePowerWatts": 10**12}),
    ),
    Rule(
        path="spec.assetRef.name",
        message="may not be more than 63",
        refused=spec(assetRef={"name": "a" * 64}),
        accepted=spec(assetRef={"name": "a" * 63}),
    ),
    Rule(
        path="spec.assetRef.name",
        message="should be at least 1 chars long",
        refused=spec(assetRef={"name": ""}),
        accepted=spec(assetRef={"name": "a"}),
    ),
    Rule(
        path="spec.assetRef.name",
        message="should match",
        refused=spec(assetRef={"name": "Battery.7"}),
        accepted=spec(assetRef={"name": "battery-7"}),
    ),
    start_time("2030-12-01T18:00:00", "2030-12-01T18:00:00Z", "should match"),
    start_time("2030-12-01t18:00:00z", "2030-12-01T19:00:00+01:00", "should match"),
    start_time("2030-12-01T18:00:00+24:00", "2030-12-01T18:00:00.5-23:59", "should match"),
    start_time("tomorrow", "2030-12-01T18:00:00.123456Z", "should match"),
    start_time("2030-02-30T18:00:00Z", "2032-02-29T18:00:00Z", "must be of type date-time"),
    choice("setpoint.mode", "ActivePower"),
    choice("latePolicy", "KeepDuration"),
    choice("verify", "Required"),
    choice("desiredState", "Cancelled"),
    required("spec.assetRef", spec(assetRef=None)),
    required("spec.assetRef.name", spec(assetRef={"name": None})),
    required("spec.setpoint", spec(setpoint=None)),
    required("spec.setpoint.mode", spec(setpoint={"mode": None})),
    required("spec.durationSeconds", spec(durationSeconds=None)),
]

_MAY_CHANGE = spec(desiredState="Cancelled", ttlSecondsAfterFinished=60)


def immutable(name: str, refused: object, stored: object = None) -> Rule:
    """Return the rule that a field keeps its value, absence included."""
    return Rule(
        path=f"spec.{name}",
        message=IMMUTABLE,
        stored=spec(**{name: stored}) if stored is not None else {},
        refused=spec(**{name: refused}),
        accepted=_MAY_CHANGE,
    )


CHANGES = [
    immutable("assetRef", {"name": "battery-8"}),
    immutable("setpoint", {"activePowerWatts": 5001}),
    immutable("setpoint", GENERATION),
    immutable("startTime", START),
    immutable("startTime", "2030-12-01T18:00:01Z", stored=START),
    immutable("startTime", None, stored=START),
    immutable("durationSeconds", 1801),
    immutable("startDeadlineSeconds", 60),
    immutable("startDeadlineSeconds", 61, stored=60),
    immutable("startDeadlineSeconds", None, stored=60),
    immutable("randomizeStartSeconds", 1),
    immutable("latePolicy", "KeepDuration"),
    immutable("reportDeadlineSeconds", 901),
    immutable("primacy", 99),
    immutable("verify", "Required"),
    Rule(
        path="spec.desiredState",
        message="desiredState cannot go back from Cancelled",
        stored=spec(desiredState="Cancelled"),
        refused=spec(desiredState="Active"),
        accepted=spec(ttlSecondsAfterFinished=0),
    ),
]

COMPLETE = {"phase": "Complete", "completionTime": ENDED, "observedGeneration": 1}

STATUS = [
    Rule(
        path="status.completionTime",
        message="completionTime is required in a terminal phase",
        refused={"phase": "Failed"},
        accepted={"phase": "Failed", "completionTime": ENDED},
    ),
    Rule(
        path="status.completionTime",
        message="completionTime may only be set in a terminal phase",
        refused={"phase": "Active", "completionTime": ENDED},
        accepted={"phase": "Active"},
    ),
    Rule(
        path="status.phase",
        message="phase cannot change once the Dispatch has ended",
        stored=COMPLETE,
        refused={"phase": "Failed"},
        accepted={"observedGeneration": 2},
    ),
    Rule(
        path="status.phase",
        message="phase cannot change once the Dispatch has ended",
        stored=COMPLETE,
        refused={"phase": None, "completionTime": None},
        accepted={"message": "the window ended as planned"},
    ),
    Rule(
        path="status.completionTime",
        message="completionTime cannot change once it is set",
        stored=COMPLETE,
        refused={"completionTime": LATER},
        accepted={
            "lateReport": {"phase": "Failed", "reason": "Late", "message": "late", "at": LATER},
            "conditions": [
                {
                    "type": "Verified",
                    "status": "False",
                    "reason": "EffectNotObserved",
                    "message": "",
                    "lastTransitionTime": LATER,
                }
            ],
        },
    ),
    Rule(
        path="status.completionTime",
        message="completionTime cannot change once it is set",
        stored=COMPLETE,
        refused={"completionTime": None},
        accepted={"completionTime": ENDED},
    ),
    Rule(
        path="status.createdBy",
        message="createdBy cannot change once it is set",
        stored={"createdBy": "alice", "observedGeneration": 1},
        refused={"createdBy": "eve"},
        accepted={"createdBy": "alice", "message": "the agent checked and stored it"},
    ),
    Rule(
        path="status.phase",
        message="Unsupported value",
        refused={"phase": "Completed"},
        accepted={"phase": "Acked"},
    ),
    Rule(
        path="status.history",
        message="must have at most 20 items",
        refused={
            "history": [
                {"at": ENDED, "phase": "Active", "reason": "", "message": "", "actor": "Agent"}
            ]
            * 21
        },
        accepted={
            "history": [
                {"at": ENDED, "phase": "Active", "reason": "", "message": "", "actor": "Agent"}
            ]
            * 20
        },
    ),
]
