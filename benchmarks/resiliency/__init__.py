"""Resiliency."""
