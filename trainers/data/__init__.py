"""Clips: reading and writing video files, choosing frames, datasets on disk, and batches."""
