"""Makes networks: from photographs to a registered model. Each module is a command; some are stages of dvc.yaml."""
