"""Turns source images into manifest entries: inspects, deduplicates and splits them."""
