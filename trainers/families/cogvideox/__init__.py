"""CogVideoX: a diffusion transformer over video and text together, from text or from an image and text."""
