"""What the gateway knows of the fleet: desired state, sessions, telemetry order. No transport."""
