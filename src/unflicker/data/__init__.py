"""Clips: from files to train on, and a synthetic one whose truth is known."""

from unflicker.data.synthetic import demo_clip

__all__ = ["demo_clip"]
