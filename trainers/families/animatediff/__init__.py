"""AnimateDiff: motion modules on an SD 1.5 image model."""
