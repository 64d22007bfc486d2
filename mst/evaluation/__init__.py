"""How good the models are on cases whose answers are known."""

from mst.evaluation.cohort import evaluate
from mst.evaluation.figures import summarise

__all__ = ["evaluate", "summarise"]
