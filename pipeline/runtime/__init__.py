"""How a command runs: errors, environment variables, fingerprints, provenance, atomic files."""
