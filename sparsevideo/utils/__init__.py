"""Helpers that know nothing of video or networks."""
