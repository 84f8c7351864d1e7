"""Exports a trained checkpoint to a bundle that `mega_ros` runs without torch."""
