"""Shards to deterministic training batches and evaluation pairs."""
