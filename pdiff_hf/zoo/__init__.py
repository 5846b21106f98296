"""Checkpoint zoos: recorded, stored, merged."""
