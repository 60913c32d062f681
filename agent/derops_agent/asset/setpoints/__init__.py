"""Bringing one device to what the executions want, and asking it whether it holds that."""
