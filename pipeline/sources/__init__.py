"""Folders, archives, URLs and real pairs, and the manifest file."""
