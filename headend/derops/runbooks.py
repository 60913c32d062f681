"""Which page says what to do about a fault of the data path. Alerts and the plugin name the same.

Pages are paths in the repository. What is wrong with one asset has one page, for all its reasons.
"""

from derops.data_path import AssetFault, SeenFault, SharedFault

_RUNBOOKS = "docs/runbooks"

RUNBOOK_OF: dict[AssetFault | SharedFault | SeenFault, str] = {
    **dict.fromkeys(AssetFault, f"{_RUNBOOKS}/derops-assets-without-data.md"),
    AssetFault.TELEMETRY_REFUSED: f"{_RUNBOOKS}/derops-data-quarantined.md",
    SharedFault.GATEWAY_LOST: f"{_RUNBOOKS}/derops-gateway-not-connected.md",
    SharedFault.LOG_FAILING: f"{_RUNBOOKS}/derops-event-log-failing.md",
    SharedFault.LOG_FULL: f"{_RUNBOOKS}/derops-event-log-full.md",
    SharedFault.LOG_DAMAGED: f"{_RUNBOOKS}/derops-event-log-damaged.md",
    SharedFault.WRITER_SILENT: f"{_RUNBOOKS}/derops-program-down.md",
    SharedFault.WRITER_BEHIND: f"{_RUNBOOKS}/derops-writer-behind.md",
    SharedFault.DATABASE_UNREACHABLE: f"{_RUNBOOKS}/derops-database-failing.md",
    SharedFault.DATABASE_REFUSES: f"{_RUNBOOKS}/derops-database-failing.md",
    SharedFault.DATABASE_FULL: f"{_RUNBOOKS}/derops-database-failing.md",
    SharedFault.DATABASE_FAILING: f"{_RUNBOOKS}/derops-database-failing.md",
    SeenFault.OPERATOR_SILENT: f"{_RUNBOOKS}/derops-program-down.md",
    SeenFault.NOTHING_STORED: f"{_RUNBOOKS}/derops-data-not-fresh.md",
    SeenFault.OLD_SAMPLES: f"{_RUNBOOKS}/derops-data-not-fresh.md",
}
