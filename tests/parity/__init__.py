"""Checks of a family against a folder of reference vectors: python -m tests.parity FAMILY DIR."""
