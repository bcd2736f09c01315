"""The labels that a task or a protocol needs. Nothing is imported here, so that help texts can use it at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otus.data.dataset import Dataset


@dataclass(frozen=True)
class RequiredLabels:
    """Required labels: a description in words, and a function that says whether a data set has them."""

    what: str
    in_dataset: "Callable[[Dataset], bool]"
