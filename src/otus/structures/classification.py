"""Image classification results."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from otus.errors import ShapeError
from otus.structures.categories import Categories


@dataclass(frozen=True, eq=False)
class Classification:
    """Scores of the categories for a whole image.

    Parameters
    ----------
    scores
        (C,) in [0, 1].
    categories
        The C categories.

    Examples
    --------
    >>> prediction = Classification(np.array([0.2, 0.7, 0.1]), Categories(("cat", "dog", "owl")))
    >>> [prediction.categories[label] for label in prediction.order()]
    ['dog', 'cat', 'owl']
    """

    scores: Float[np.ndarray, "c"]
    categories: Categories

    def __post_init__(self) -> None:
        if np.shape(self.scores) != (len(self.categories),):
            raise ShapeError(f"scores: expected shape ({len(self.categories)},), got {np.shape(self.scores)}")

    def resized(self, size_hw: tuple[int, int]) -> "Classification":
        """Return the classification itself, which does not depend on the image's size."""
        return self

    def order(self) -> Int[np.ndarray, "c"]:
        """Return the labels in descending order of score."""
        return np.argsort(-np.asarray(self.scores), kind="stable")
