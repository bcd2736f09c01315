"""The index of each label among a head's logits: others' weights have background first, or COCO's ids with their gaps."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from otus.errors import ShapeError
from otus.structures import Categories


def class_indices_of(
    categories: Categories, class_indices: Sequence[int] | None, *, background: bool
) -> tuple[int, ...]:
    """Return the class indices given (default: one per label, from 0 on, or from 1 on where index 0 is background).

    Weights trained on COCO by others have 91 logits, numbered by COCO's ids; those of no category are never reported.

    Raises
    ------
    ShapeError
        If there are no categories, or not as many indices.
    """
    if class_indices is None:
        class_indices = range(int(background), len(categories) + int(background))
    if len(class_indices) != len(categories) or not class_indices:
        raise ShapeError(
            f"class_indices: expected one for each category ({len(categories)}), got {tuple(class_indices)}"
        )
    return tuple(class_indices)


def class_index_tables(class_indices: Sequence[int], *, background: bool) -> tuple[Int[Tensor, "s"], Int[Tensor, "k"]]:
    """Return the label of each class index, -1 for none, and the class index of each label.

    Raises
    ------
    ShapeError
        If two labels share an index, or one has background's.
    """
    first = int(background)
    if not class_indices or min(class_indices) < first or len(set(class_indices)) != len(class_indices):
        raise ShapeError(f"class_indices: expected different numbers from {first} on, got {tuple(class_indices)}")
    index_of_label = torch.tensor(class_indices)
    label_of_index = torch.full((max(class_indices) + 1,), -1)
    label_of_index[index_of_label] = torch.arange(len(class_indices))
    return label_of_index, index_of_label
