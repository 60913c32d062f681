"""Whose certificates count, and who is told."""
