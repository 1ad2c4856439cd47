"""Patterns made of cooperating processes, each of which may be a container."""
