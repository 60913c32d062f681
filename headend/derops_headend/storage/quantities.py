"""What the columns of telemetry and of its roll-ups are."""

QUANTITIES = (
    "active_power_watts",
    "reactive_power_vars",
    "voltage_volts",
    "frequency_hertz",
    "state_of_charge_percent",
    "energy_injected_watt_hours",
    "energy_absorbed_watt_hours",
    "temperature_celsius",
    "setpoint_watts",
    "max_generation_watts",
    "max_load_watts",
    "available_power_watts",
    "clock_offset_seconds",
)
"""Columns of ``telemetry`` that may be empty."""

ROLLED_UP: dict[str, tuple[str, ...]] = {
    "active_power_watts": ("mean", "min", "max"),
    "reactive_power_vars": ("mean",),
    "voltage_volts": ("mean", "min", "max"),
    "frequency_hertz": ("mean",),
    "state_of_charge_percent": ("mean", "min", "max"),
    "energy_injected_watt_hours": ("sum",),
    "energy_absorbed_watt_hours": ("sum",),
    "temperature_celsius": ("max",),
}
"""What the roll-ups have of each quantity. Energy is made from power."""
