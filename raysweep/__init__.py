"""raysweep: sweeps over diffusion-transformer training in which no step is computed twice."""

__version__ = "0.1.0"
