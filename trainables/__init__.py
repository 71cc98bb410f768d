"""The science of raysweep in plain PyTorch: backbones, methods, the training loop, samplers and metrics.

Knows neither Ray, Optuna, MLflow nor raysweep, so that it runs the same under pytest, torchrun and Ray Train.
"""
