"""Source images to inspected, deduplicated and split manifest entries."""
