"""Engines of the event log behind ``derops_headend.ports.EventLog``."""
