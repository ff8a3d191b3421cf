"""Runs, trials of a search and registered models in MLflow; decides which version is the champion."""
