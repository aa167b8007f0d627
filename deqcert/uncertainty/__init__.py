"""Uncertainty of a network: samples of all its weights, and what a DEQ predicts under them."""

from deqcert.uncertainty.posterior import WeightPosterior
from deqcert.uncertainty.predictive import Predictive, predictive, weight_samples

__all__ = ["Predictive", "WeightPosterior", "predictive", "weight_samples"]
