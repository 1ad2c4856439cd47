"""Benchmarks of the patterns in patterns/resiliency."""
