"""Benchmarks of the patterns in patterns/cache."""
