"""How good the models are on cases whose answers are known."""

from mst.evaluation.figures import summarise
from mst.evaluation.measure import evaluate

__all__ = ["evaluate", "summarise"]
