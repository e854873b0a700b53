"""What the figures draw is what the metrics measure."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tasks.figures import Curves


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        ([0, 1, 0, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.1]),
        ([1, 0, 1, 0], [0.5, 0.5, 0.5, 0.5]),
        (np.arange(60) % 3 == 0, np.random.default_rng(0).integers(0, 12, 60) / 12),
    ],
    ids=["the worst in front", "one score", "ties"],
)
def test_the_areas_under_the_drawn_lines_are_the_metrics(labels: list[int], scores: list[float]) -> None:
    curves = Curves()
    curves.add("nut", np.array(labels), np.array(scores), None)
    for name, metric in (("pr", average_precision_score), ("roc", roc_auc_score)):
        (line,) = curves.axes[name].lines
        x, y = line.get_path().vertices.T  # the corners of the steps among them
        assert (x[0], x[-1]) == (0, 1)
        assert np.trapezoid(y, x) == pytest.approx(metric(labels, scores), abs=1e-12)
