"""What the API server checks of a DERAsset: each rule with a case on either side of it."""

from tests.crds.manifests import Manifest
from tests.crds.rules import Rule, spec

AT = "2026-12-01T18:00:00.123Z"
ABOVE_ALL = 1_000_000_000_001


def of_type(kind: str, injection: int = 5000, absorption: int = 5000, **others: object) -> Manifest:
    """Return a patch that makes an asset of another type from the battery."""
    ratings = {
        "maxInjectionWatts": injection,
        "maxAbsorptionWatts": absorption,
        "energyCapacityWattHours": None,
    }
    return spec(type=kind, ratings=ratings, **others)


def bounds(path: str, lowest: int, highest: int) -> list[Rule]:
    """Return the rules of an integer's bounds; ``path`` is that below spec."""
    section, name = path.split(".")
    return [
        Rule(
            path=f"spec.{path}",
            message=f"should be greater than or equal to {lowest}",
            refused=spec(**{section: {name: lowest - 1}}),
            accepted=spec(**{section: {name: lowest}}),
        ),
        Rule(
            path=f"spec.{path}",
            message=f"should be less than or equal to {highest}",
            refused=spec(**{section: {name: highest + 1}}),
            accepted=spec(**{section: {name: highest}}),
        ),
    ]


def choice(path: str, good: str) -> Rule:
    """Return the rule of an enum; ``path`` is that below spec."""
    *sections, name = path.split(".")
    refused: Manifest = {name: "Other"}
    accepted: Manifest = {name: good}
    for section in reversed(sections):
        refused, accepted = {section: refused}, {section: accepted}
    return Rule(
        path=f"spec.{path}",
        message="Unsupported value",
        refused={"spec": refused},
        accepted={"spec": accepted},
    )


def required(path: str, refused: Manifest) -> Rule:
    return Rule(path=path, message="Required value", refused=refused, accepted={})


EXPRESSIONS = [
    Rule(
        path="metadata.name",
        message="name must have at most 63 characters",
        refused={"metadata": {"name": "a" * 64}},
        accepted={"metadata": {"name": "a" * 63}},
    ),
    Rule(
        path="metadata.name",
        message="name must have no dot",
        refused={"metadata": {"name": "battery.7"}},
        accepted={"metadata": {"name": "battery-7"}},
    ),
    Rule(
        path="spec.ratings",
        message="at least one of maxInjectionWatts and maxAbsorptionWatts must be above 0 W",
        refused=of_type("Generator", injection=0, absorption=0),
        accepted=of_type("Generator", injection=1, absorption=0),
    ),
    Rule(
        path="spec.ratings.energyCapacityWattHours",
        message="energyCapacityWattHours is required for a Battery",
        refused=spec(ratings={"energyCapacityWattHours": None}),
        accepted=spec(ratings={"energyCapacityWattHours": 1}),
    ),
    Rule(
        path="spec.ratings.energyCapacityWattHours",
        message="energyCapacityWattHours may only be set for a Battery",
        refused=spec(type="Solar"),
        accepted=of_type("Solar"),
    ),
    Rule(
        path="spec.limits.maxInjectionWatts",
        message="limits.maxInjectionWatts must not be above ratings.maxInjectionWatts",
        refused=spec(limits={"maxInjectionWatts": 10001}),
        accepted=spec(limits={"maxInjectionWatts": 10000}),
    ),
    Rule(
        path="spec.limits.maxAbsorptionWatts",
        message="limits.maxAbsorptionWatts must not be above ratings.maxAbsorptionWatts",
        refused=spec(limits={"maxAbsorptionWatts": 8001}),
        accepted=spec(limits={"maxAbsorptionWatts": 8000}),
    ),
    Rule(
        path="spec.fallback.failsafeAfterSeconds",
        message="failsafeAfterSeconds is required with onCommsLoss Revert",
        refused=spec(fallback={"onCommsLoss": "Revert"}),
        accepted=spec(fallback={"onCommsLoss": "Revert", "failsafeAfterSeconds": 300}),
    ),
    Rule(
        path="spec.fallback.activePowerWatts",
        message="activePowerWatts must not be above ratings.maxInjectionWatts",
        refused=spec(fallback={"activePowerWatts": 10001}),
        accepted=spec(fallback={"activePowerWatts": 10000}),
    ),
    Rule(
        path="spec.fallback.activePowerWatts",
        message="activePowerWatts must not absorb more than ratings.maxAbsorptionWatts",
        refused=spec(fallback={"activePowerWatts": -8001}),
        accepted=spec(fallback={"activePowerWatts": -8000}),
    ),
]

FALLBACKS = [
    Rule(
        path="spec.fallback.activePowerWatts",
        message="activePowerWatts may only be set for a Battery or Generator",
        refused=of_type("Solar", fallback={"activePowerWatts": 0}),
        accepted=of_type("Generator", fallback={"activePowerWatts": 0}),
    ),
    Rule(
        path="spec.fallback.maxGenerationWatts",
        message="maxGenerationWatts may only be set for a Battery, Solar or Generator",
        refused=of_type("Load", fallback={"maxGenerationWatts": 0}),
        accepted=of_type("Solar", fallback={"maxGenerationWatts": 0}),
    ),
    Rule(
        path="spec.fallback.maxLoadWatts",
        message="maxLoadWatts may only be set for a Battery, EVCharger or Load",
        refused=of_type("Solar", fallback={"maxLoadWatts": 0}),
        accepted=of_type("EVCharger", fallback={"maxLoadWatts": 0}),
    ),
]

BOUNDS = [
    *bounds("ratings.maxInjectionWatts", 0, 10**12),
    *bounds("ratings.maxAbsorptionWatts", 0, 10**12),
    *bounds("ratings.energyCapacityWattHours", 1, 10**12),
    *bounds("limits.maxDispatchDurationSeconds", 1, 604_800),
    *bounds("limits.maxRampWattsPerSecond", 1, 10**12),
    *bounds("limits.minReservePercent", 0, 100),
    *bounds("limits.minSecondsBetweenWrites", 0, 3600),
    *bounds("fallback.maxGenerationWatts", 0, 10**12),
    *bounds("fallback.maxLoadWatts", 0, 10**12),
    *bounds("fallback.failsafeAfterSeconds", 1, 604_800),
    *bounds("verification.toleranceWatts", 0, 10**12),
    *bounds("verification.tolerancePercent", 0, 100),
    *bounds("verification.settleSeconds", 0, 3600),
    *bounds("verification.samples", 1, 1000),
    *bounds("identity.certificateDurationSeconds", 3600, 315_360_000),
    *bounds("telemetry.intervalSeconds", 1, 3600),
    Rule(
        path="spec.limits.maxInjectionWatts",
        message="should be greater than or equal to 0",
        refused=spec(limits={"maxInjectionWatts": -1}),
        accepted=spec(limits={"maxInjectionWatts": 0}),
    ),
    Rule(
        path="spec.limits.maxInjectionWatts",
        message="should be less than or equal to 1000000000000",
        refused=spec(limits={"maxInjectionWatts": ABOVE_ALL}),
        accepted=spec(ratings={"maxInjectionWatts": 10**12}, limits={"maxInjectionWatts": 10**12}),
    ),
    Rule(
        path="spec.limits.maxAbsorptionWatts",
        message="should be greater than or equal to 0",
        refused=spec(limits={"maxAbsorptionWatts": -1}),
        accepted=spec(limits={"maxAbsorptionWatts": 0}),
    ),
    Rule(
        path="spec.limits.maxAbsorptionWatts",
        message="should be less than or equal to 1000000000000",
        refused=spec(limits={"maxAbsorptionWatts": ABOVE_ALL}),
        accepted=spec(
            ratings={"maxAbsorptionWatts": 10**12}, limits={"maxAbsorptionWatts": 10**12}
        ),
    ),
    Rule(
        path="spec.fallback.activePowerWatts",
        message="should be less than or equal to 1000000000000",
        refused=spec(fallback={"activePowerWatts": ABOVE_ALL}),
        accepted=spec(ratings={"maxInjectionWatts": 10**12}, fallback={"activePowerWatts": 10**12}),
    ),
    Rule(
        path="spec.fallback.activePowerWatts",
        message="should be greater than or equal to -1000000000000",
        refused=spec(fallback={"activePowerWatts": -ABOVE_ALL}),
        accepted=spec(
            ratings={"maxAbsorptionWatts": 10**12}, fallback={"activePowerWatts": -(10**12)}
        ),
    ),
    choice("type", "Battery"),
    choice("limits.onExceed", "Clamp"),
    choice("fallback.onCommsLoss", "Continue"),
    choice("fallback.onRestart", "Revert"),
    choice("identity.mode", "Managed"),
    Rule(
        path="spec.identity.lift.key",
        message="Unsupported value",
        refused=spec(identity={"lift": {"quarantinedAt": AT, "key": "Forget"}}),
        accepted=spec(identity={"lift": {"quarantinedAt": AT, "key": "Revoke"}}),
    ),
    required("spec.identity.lift.key", spec(identity={"lift": {"quarantinedAt": AT}})),
    required("spec.identity.lift.quarantinedAt", spec(identity={"lift": {"key": "Keep"}})),
    Rule(
        path="spec.identity.lift.quarantinedAt",
        message="must be of type date-time",
        refused=spec(identity={"lift": {"quarantinedAt": "yesterday", "key": "Keep"}}),
        accepted=spec(identity={"lift": {"quarantinedAt": AT, "key": "Keep"}}),
    ),
    choice("operatingState", "Quarantined"),
    required("spec.type", spec(type=None)),
    required("spec.ratings", spec(ratings=None)),
    required("spec.ratings.maxInjectionWatts", spec(ratings={"maxInjectionWatts": None})),
    required("spec.ratings.maxAbsorptionWatts", spec(ratings={"maxAbsorptionWatts": None})),
]

CHANGES = [
    Rule(
        path="spec.type",
        message="type cannot be changed: delete this DERAsset and create another",
        stored=of_type("Generator"),
        refused=spec(type="Solar"),
        accepted=spec(
            operatingState="OutOfService",
            ratings={"maxInjectionWatts": 6000},
            limits={"maxInjectionWatts": 4000},
        ),
    ),
]
