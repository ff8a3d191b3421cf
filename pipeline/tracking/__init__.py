"""Everything that knows MLflow: runs, trials, registry, served model."""
