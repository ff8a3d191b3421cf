"""Runs work on Ray: sessions, tasks, training runs and their checkpoints."""
