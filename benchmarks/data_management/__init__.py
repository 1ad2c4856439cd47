"""Benchmarks of the patterns in patterns/data_management."""
