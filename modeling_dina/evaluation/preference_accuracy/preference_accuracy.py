"""Agreement of predicted with observed preferences between two images, as a metric for `evaluate.load(folder)`."""

import datasets
import evaluate
import numpy as np

from modeling_dina.evaluation.statistics import agreement, clustered_mean

_DESCRIPTION = """
Share of pairs whose rewards have the order of the observed preference, with a standard error and a bootstrap interval
over prompts.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: reward of the first image minus that of the second, for each pair.
    references: probability that the first image is preferred: 1, 0, or a share of votes; 0.5 is a tie.
    prompts: optional text or number for each pair; pairs with equal ones form a cluster. By default, each pair does.
    drop_ties: whether to drop pairs with the reference 0.5.
    seed: seed of the bootstrap.
Returns:
    accuracy: between 0 and 1, where equal rewards count as an error; None if there are no pairs.
    standard_error: None for fewer than two prompts.
    interval: 2.5 and 97.5 percentiles of the bootstrap; None for fewer than two prompts.
    pairs: number of pairs used.
Examples:
    >>> metric = evaluate.load("modeling_dina/evaluation/preference_accuracy")
    >>> metric.compute(predictions=[0.3, -1.2, 0.0], references=[1, 1, 0])["accuracy"]
    0.3333333333333333
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PreferenceAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions, references, prompts=None, drop_ties=False, seed=0):
        difference, target = np.asarray(predictions, float), np.asarray(references, float)
        clusters = np.arange(len(target)) if prompts is None else np.asarray(prompts)
        if len(clusters) != len(target):
            raise ValueError(f"prompts: expected one for each of {len(target)} pairs, got {len(clusters)}")
        if not (np.isfinite(difference).all() and ((target >= 0) & (target <= 1)).all()):
            raise ValueError("predictions, references: expected finite numbers, and references within [0, 1]")
        used = target != 0.5 if drop_ties else np.ones(len(target), bool)
        if not used.any():
            return {"accuracy": None, "standard_error": None, "interval": None, "pairs": 0}
        measured = clustered_mean(agreement(difference, target, ties="wrong")[used], clusters[used], seed=seed)
        return {"accuracy": measured.pop("mean"), **measured, "pairs": int(used.sum())}
