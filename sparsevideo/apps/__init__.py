"""Whole jobs made of the parts: the quickstart."""
