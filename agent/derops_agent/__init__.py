"""The agent: the device, and time."""
