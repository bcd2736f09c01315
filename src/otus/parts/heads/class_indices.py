"""Where each label stands among a head's classes: weights of others have background first, or COCO's ids with their gaps."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from otus.errors import ShapeError
from otus.structures import Categories


def slots_of(categories: Categories, class_slots: Sequence[int] | None, *, background: bool) -> tuple[int, ...]:
    """The class slots given, else one a label: from 0 on, or from 1 on where slot 0 is background.

    Weights trained on COCO by others have 91 slots, numbered by COCO's ids; those of no category are never reported.

    Raises
    ------
    ShapeError
        If there are no categories, or not as many slots.
    """
    if class_slots is None:
        class_slots = range(int(background), len(categories) + int(background))
    if len(class_slots) != len(categories) or not class_slots:
        raise ShapeError(f"class slots: expected one for each category ({len(categories)}), got {tuple(class_slots)}")
    return tuple(class_slots)


def slot_tables(class_slots: Sequence[int], *, background: bool) -> tuple[Int[Tensor, "s"], Int[Tensor, "k"]]:
    """The label of each slot, -1 for none, and the slot of each label.

    Raises
    ------
    ShapeError
        If two labels share a slot, or one has background's.
    """
    first = int(background)
    if not class_slots or min(class_slots) < first or len(set(class_slots)) != len(class_slots):
        raise ShapeError(f"class slots: expected different numbers from {first} on, got {tuple(class_slots)}")
    slot_of_label = torch.tensor(class_slots)
    label_of_slot = torch.full((max(class_slots) + 1,), -1)
    label_of_slot[slot_of_label] = torch.arange(len(class_slots))
    return label_of_slot, slot_of_label
