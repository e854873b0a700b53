"""AnomalyCLIP in plain PyTorch: tensors in, tensors out; no storage, no scheduler.

The names below are imported when they are asked for: metrics need no CLIP, and its import takes seconds and memory.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.detector import Detector, Prediction, load_detector

__all__ = ["Detector", "Prediction", "load_detector"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from models import detector

    return getattr(detector, name)
