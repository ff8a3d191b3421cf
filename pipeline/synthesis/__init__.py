"""Manifest entries to tiles, tiles to clean/degraded pairs."""
