"""Image classification by folders: the folder's name is the category. Read only. ::

    CATEGORY/*.jpg      or      SPLIT/CATEGORY/*.jpg

The categories are the folder names of all splits, sorted, so that labels agree between splits.
"""

from pathlib import Path

import numpy as np

from otus.data.dataset import Dataset, Images
from otus.data.formats.interface import Layout
from otus.data.formats.paths import SPLIT_FOLDERS, read_image_sizes, relative_name, subfolders
from otus.data.image_files import IMAGE_SUFFIXES, is_own_output, is_system_file, list_images
from otus.errors import DataError, Report, stop_at_first
from otus.structures import Categories

# Folders of images in other layouts, which are not categories.
_NOT_CATEGORIES = frozenset(
    (
        "images", "image", "imgs", "img", "image_2", "jpegimages", "photos", "masks", "mask", "labels", "label",
        "annotations", "annotation", "segmentationclass", "segmentationobject",
    )
)  # fmt: skip


def find(path: Path) -> list[Layout]:
    """Find at least two folders of images, or split folders (train, val …) of such folders."""
    splits = [path / name for name in SPLIT_FOLDERS if _categories(path / name)]
    if splits:
        return [Layout("classification_folders", path, folder.name) for folder in splits]
    return [Layout("classification_folders", path)] if len(_categories(path)) >= 2 else []


def _categories(folder: Path) -> list[str]:
    """Return the subfolder names if each may be a category, i.e. holds images or is empty; else []."""
    folders = [
        subfolder
        for subfolder in subfolders(folder)
        if not subfolder.name.startswith("_") and not is_own_output(subfolder)
    ]
    lower_names = {subfolder.name.lower() for subfolder in folders}
    if lower_names & (_NOT_CATEGORIES | set(SPLIT_FOLDERS)) or any(
        name.endswith("annot") or name.startswith("obj_") for name in lower_names
    ):
        return []
    is_image = [
        [file.suffix.lower() in IMAGE_SUFFIXES for file in subfolder.glob("*") if not is_system_file(file.name)]
        for subfolder in folders
    ]
    if not any(any(images) for images in is_image) or not all(any(images) or not images for images in is_image):
        return []
    return [subfolder.name for subfolder in folders]


def read(layout: Layout, *, report: Report = stop_at_first) -> Dataset:
    """Read the images and ``image_labels``; unreadable images are reported and left out."""
    root = layout.source
    folder = root / (layout.split or "")
    parts = [root / name for name in SPLIT_FOLDERS] if layout.split else [root]
    names = sorted({name for part in parts for name in _categories(part)})
    if not folder.is_dir() or not names:
        raise DataError("expected a folder for each category, with images in it", file=folder, remedy="check the path")
    paths, sizes = read_image_sizes([path for name in names for path in _images(folder / name)], report)
    label_of = {name: label for label, name in enumerate(names)}
    return Dataset(
        source=root,
        format="classification_folders",
        split=layout.split,
        images=Images(
            root=root,
            files=tuple(relative_name(path, root) for path in paths),
            sizes_hw=sizes,
            ids=tuple(path.stem for path in paths),
        ),
        categories=Categories(tuple(names)),
        image_labels=np.array([label_of[path.relative_to(folder).parts[0]] for path in paths], dtype=np.int64),
    )


def _images(folder: Path) -> list[Path]:
    return list_images(folder, recursive=True) if folder.is_dir() else []
