"""How images are judged: detectors turn them into features, statistics merge across ranks, distances compare them."""

from trainables.evaluation.frechet import frechet_distance
from trainables.evaluation.inception_score import inception_score
from trainables.evaluation.precision_recall import precision_recall

__all__ = ["frechet_distance", "inception_score", "precision_recall"]
