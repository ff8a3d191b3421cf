"""Finds stored data that is no longer needed, and says why the rest is kept."""
