"""Ratios and means that are NaN, not 0, where they are undefined."""

import numpy as np
from jaxtyping import Float


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> Float[np.ndarray, "n"]:
    """Return numerator / denominator; NaN where the denominator is 0."""
    denominator = denominator.astype(np.float64)
    return np.divide(numerator, denominator, out=np.full(len(denominator), np.nan), where=denominator > 0)


def mean_of_defined(values: Float[np.ndarray, "n"]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
