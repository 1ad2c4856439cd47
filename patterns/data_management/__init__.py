"""Patterns for where data lives, and for how what was written becomes what is read."""
