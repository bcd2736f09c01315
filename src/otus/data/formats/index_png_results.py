"""Predicted semantic maps: a folder of index PNGs with the pixel values of the labels. Read only. ::

    NAME.png      the name of its image, also in subfolders

Pixels with a void value, such as 255, have no prediction.
"""

from pathlib import Path

import numpy as np

from otus.data.dataset import Dataset, SemanticFiles
from otus.data.formats.paths import list_files
from otus.data.image_lookup import example_names, image_index_by_name
from otus.data.images import read_label_image
from otus.errors import DataError, Report, stop_at_first
from otus.structures import IGNORE, SemanticMap


def find_semantic_results(
    folder: str | Path, dataset: Dataset, *, report: Report = stop_at_first
) -> tuple[Path | None, ...]:
    """Return the path of each image's predicted map, None for an image without one.

    Raises
    ------
    DataError
        Through ``report``: a map of an unknown image, a second map of an image. Raised directly: a folder without PNGs.
    """
    folder = Path(folder)
    paths = list_files(folder, "**/*.png") if folder.is_dir() else []
    if not paths:
        remedy = "give a folder with one PNG per image, of the same name"
        raise DataError("expected a folder of index PNGs, found none", file=folder, remedy=remedy)
    find_index = image_index_by_name(dataset)
    files: list[Path | None] = [None] * len(dataset)
    for path in paths:
        index = find_index(path.relative_to(folder).with_suffix("").as_posix())
        if index is None:
            remedy = "name it like its image, or remove it"
            problem = f"is not the name of an image of the data; names are {example_names(dataset)}"
            report(DataError(problem, file=path, remedy=remedy, kind="unknown_image"))
        elif files[index] is not None:
            problem = f"a second map of an image; the first is {files[index]}"
            report(DataError(problem, file=path, remedy="remove one of them", kind="duplicate_id"))
        else:
            files[index] = path
    return tuple(files)


def read_semantic_result(path: Path, semantic: SemanticFiles, *, size_hw: tuple[int, int]) -> SemanticMap:
    """Read one predicted map.

    Raises
    ------
    DataError, ImageError
        If it cannot be read, has another size, or values that are neither a category nor void.
    """
    values = read_label_image(path, expected_size_hw=size_hw)
    values_present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    unknown = values_present[
        (semantic.lookup[values_present] == IGNORE) & ~np.isin(values_present, semantic.void_values)
    ]
    if len(unknown):
        names = ", ".join(
            f"{value} {name}" for value, name in zip(semantic.categories.ids, semantic.categories, strict=True)
        )
        raise DataError(
            f"has the values {unknown[:5].tolist()}, which are no categories of the labels ({names})",
            file=path,
            remedy=f"write the labels' values, and {IGNORE} for pixels without prediction",
            kind="unknown_category",
        )
    return SemanticMap(semantic.lookup[values], semantic.categories)
