"""Configs, the demo, and tiny random models."""
