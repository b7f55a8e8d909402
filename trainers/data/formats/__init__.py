"""Upstream dataset layouts: one file each, with a reader and a writer."""
