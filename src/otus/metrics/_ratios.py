"""Ratios and means of which some are not defined: NaN, not 0."""

import numpy as np
from jaxtyping import Float


def ratio(part: np.ndarray, whole: np.ndarray) -> Float[np.ndarray, "n"]:
    """Part by whole, NaN where the whole is nothing."""
    whole = whole.astype(np.float64)
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def mean_of_defined(values: Float[np.ndarray, "n"]) -> float:
    """The mean of what is not NaN; NaN where nothing is left."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
