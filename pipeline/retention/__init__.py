"""What is stored and no longer needed: finds it, with the reason why the rest is kept."""
