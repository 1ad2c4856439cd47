"""Benchmarks of the patterns in patterns/container."""
