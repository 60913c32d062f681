"""Decisions: resources, the fleet and the time in; actions and status out."""
