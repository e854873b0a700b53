"""Figures of an evaluation: ROC, precision-recall and PRO curves by class, and the scores by label."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from models.metrics import rank
from models.ranking import FPR_LIMIT, Curve

MOST_NAMED = 20  # classes: a legend of more hides the curves
LONGEST_NAME = 40


class Curves:
    """ROC and precision-recall of the image scores and PRO of the maps, a line a class."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(15, 5), layout="constrained")
        self.axes = dict(zip(("roc", "pr", "pro"), self.figure.subplots(1, 3), strict=True))
        titles = {
            "roc": ("Image ROC", "false positive rate", "true positive rate"),
            "pr": ("Image precision-recall", "recall", "precision"),
            "pro": ("Per-region overlap", "false positive rate of pixels", "mean overlap"),
        }
        for name, (title, x, y) in titles.items():
            limit = FPR_LIMIT if name == "pro" else 1
            self.axes[name].set(title=title, xlabel=x, ylabel=y, xlim=(0, limit), ylim=(0, 1.02))

    def add(self, class_name: str, labels: np.ndarray, scores: np.ndarray, pro: Curve | None) -> None:
        """One class: labels and scores (N,) of its images, and its PRO curve where it has one."""
        label = class_name[:LONGEST_NAME].replace("$", r"\$")  # no formula
        if ranked := rank(labels, scores):
            self.axes["roc"].plot(*ranked.roc(), label=label)
            precision, recall = ranked.precision_recall()  # of each step in recall: the area below is average precision
            self.axes["pr"].step(np.append(0, recall), np.append(precision[0], precision), where="pre", label=label)
        if pro:
            self.axes["pro"].plot(*pro, label=label)

    def save(self, path: Path) -> None:
        for axes in self.axes.values():
            if 0 < len(axes.lines) <= MOST_NAMED:
                axes.legend(fontsize="small")
        self.figure.savefig(path, dpi=100)


def save_histogram(rows: pd.DataFrame, path: Path) -> None:
    """Scores of the normal and of the anomalous images."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, name in ((0, "normal"), (1, "anomalous")):
        scores = rows.loc[rows["label"] == label, "score"].to_numpy(float)
        axes.hist(scores, [i / 40 for i in range(41)], alpha=0.6, label=name)
    axes.set(xlabel="image score", ylabel="images", title="Scores by label")
    axes.legend()
    figure.savefig(path, dpi=100)
