"""Patterns that keep one failing dependency from taking its callers down with it."""
