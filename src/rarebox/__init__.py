"""Box-level active learning for object detection: which boxes to label next, rare classes included."""

__version__ = "0.2.0"
