"""Corruptions: what sensors, weather and cables do to a clip, with a seed so that it can be done again."""

from unflicker.corruptions.noise import gaussian_noise

__all__ = ["gaussian_noise"]
