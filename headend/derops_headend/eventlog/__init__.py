"""Engines of the event log behind ``derops_headend.eventlog.ports.EventLog``."""
