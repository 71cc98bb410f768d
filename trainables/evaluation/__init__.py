"""Metrics of generated images: detectors compute features, statistics merge across ranks, distances compare them."""

from trainables.evaluation.frechet import frechet_distance
from trainables.evaluation.manifold import precision_recall
from trainables.evaluation.score import inception_score

__all__ = ["frechet_distance", "inception_score", "precision_recall"]
