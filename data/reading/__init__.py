"""Readers of each kind of source, and what their files look like."""
