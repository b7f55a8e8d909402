"""Mochi 1: a diffusion transformer with a stream for video and a smaller one for text."""
