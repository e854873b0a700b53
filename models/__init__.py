"""AnomalyCLIP in plain PyTorch: tensors in, tensors out; no storage, no scheduler."""

from models.detector import Detector, Prediction, load_detector

__all__ = ["Detector", "Prediction", "load_detector"]
