"""Metrics with their direction and unit, and bootstrap intervals that resample speakers."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from wavcse.eval.metrics import classification, regression, transcription, verification
from wavcse.eval.metrics.bootstrap import CONFIDENCE, NUM_RESAMPLES, Metric, bootstrap_interval, paired_interval

__all__ = ["CONFIDENCE", "METRICS", "NUM_RESAMPLES", "UNITS", "Metric", "Unit", "bootstrap_interval", "paired_interval"]


class Unit(NamedTuple):
    """How figures of a unit are shown: times `scale`, with so many decimals, followed by `words`."""

    scale: int
    decimals: int
    words: str


UNITS = {"percent": Unit(100, 1, "%"), "years": Unit(1, 2, "years"), "plain": Unit(1, 3, "")}


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", True, classification.accuracy, classification.resampled_accuracy, "percent"),
    "uar": Metric("UAR", True, classification.uar, classification.resampled_uar, "percent"),
    "macro_f1": Metric("macro-F1", True, classification.macro_f1, classification.resampled_macro_f1, "percent"),
    "macro_f1_true": Metric(
        "macro-F1 (true classes)", True, classification.macro_f1_true, classification.resampled_macro_f1_true, "percent"
    ),
    "ovr_eer": Metric(
        "EER (one-vs-rest)", False, verification.one_vs_rest_eer, verification.resampled_one_vs_rest_eer, "percent"
    ),
    "ccc": Metric("CCC", True, regression.ccc, regression.resampled_ccc, "plain"),
    "pearson": Metric("Pearson's r", True, regression.pearson, regression.resampled_pearson, "plain"),
    "mae": Metric("MAE", False, regression.mae, regression.resampled_mae, "years"),
    "rmse": Metric("RMSE", False, regression.rmse, regression.resampled_rmse, "years"),
    "wer": Metric("WER", False, transcription.wer, transcription.resampled_wer, "percent"),
    "cer": Metric("CER", False, transcription.cer, transcription.resampled_cer, "percent"),
    "eer": Metric("EER", False, verification.eer, verification.resampled_eer, "percent", verification.thin_trials),
    **{
        name: Metric(
            f"minDCF (p = {p_target})",
            False,
            partial(verification.min_dcf, p_target=p_target),
            partial(verification.resampled_min_dcf, p_target=p_target),
            "plain",
            verification.thin_trials,
        )
        for name, p_target in (("min_dcf_01", 0.01), ("min_dcf_05", 0.05))
    },
}
