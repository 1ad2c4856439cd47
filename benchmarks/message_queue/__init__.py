"""Benchmarks of the patterns in patterns/message_queue."""
