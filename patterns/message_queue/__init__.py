"""Patterns that hand work from those who ask for it to those who do it."""
