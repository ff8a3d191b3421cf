"""Everything that knows MLflow: runs, trials, registry, pyfunc model."""
