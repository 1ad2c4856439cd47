"""Distributed-system design patterns that can be imported, broken and measured."""
