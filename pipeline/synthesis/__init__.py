"""Cuts images of the manifest into tiles, and makes clean/degraded pairs from tiles."""
