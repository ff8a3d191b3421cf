"""Measures networks: protocols, baselines, benchmarks, scores."""
