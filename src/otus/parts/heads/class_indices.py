"""The index of each label among a head's logits: checkpoints may have background first, or COCO's ids with their gaps."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from otus.errors import ShapeError
from otus.structures import Categories


def class_indices_of(
    categories: Categories, class_indices: Sequence[int] | None, *, background: bool
) -> tuple[int, ...]:
    """Return one class index per category.

    COCO checkpoints of other libraries have 91 logits, indexed by COCO's category ids; logits that belong to no category
    are never reported.

    Parameters
    ----------
    categories
        The categories.
    class_indices
        Index of each label among the logits (default: consecutive, from 1 on if ``background``, else from 0 on).
    background
        Whether index 0 is background.

    Raises
    ------
    ShapeError
        If there are no categories, or not as many indices as categories.
    """
    if class_indices is None:
        class_indices = range(int(background), len(categories) + int(background))
    if len(class_indices) != len(categories) or not class_indices:
        raise ShapeError(
            f"class_indices: expected one index per category ({len(categories)}), got {tuple(class_indices)}"
        )
    return tuple(class_indices)


def class_index_tables(class_indices: Sequence[int], *, background: bool) -> tuple[Int[Tensor, "s"], Int[Tensor, "k"]]:
    """Return the label of each class index, -1 for none, and the class index of each label.

    Raises
    ------
    ShapeError
        If two labels share an index, or one has the index of background.
    """
    first = int(background)
    if not class_indices or min(class_indices) < first or len(set(class_indices)) != len(class_indices):
        raise ShapeError(f"class_indices: expected distinct integers from {first} on, got {tuple(class_indices)}")
    index_of_label = torch.tensor(class_indices)
    label_of_index = torch.full((max(class_indices) + 1,), -1)
    label_of_index[index_of_label] = torch.arange(len(class_indices))
    return label_of_index, index_of_label
