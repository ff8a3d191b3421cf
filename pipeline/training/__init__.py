"""The training loop in plain PyTorch: knows neither Ray nor MLflow."""
