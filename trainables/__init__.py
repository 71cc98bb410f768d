"""Training and evaluation in plain PyTorch: backbones, methods, the training loop, samplers and metrics.

It imports neither Ray, Optuna, MLflow nor raysweep, and runs the same under pytest, torchrun and Ray Train.
"""
