"""Many photographs: blocks of them, where they are written to, and the restoration of one block."""
