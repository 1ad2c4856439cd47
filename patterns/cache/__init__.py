"""Patterns that answer from a copy, and keep that copy honest."""
