"""Check a data set thoroughly: its images, its labels, and whether they agree.

Kinds of findings, in addition to those that the readers report: ``missing_image``, ``unreadable_image``,
``mis_sized_image``, ``wrong_map``, ``unknown_value``, ``palettes_differ``, ``box_outside``, ``box_without_area``,
``counts_from_0``, ``mask_disagrees``, ``empty_mask``, ``area_disagrees``, ``box_disagrees``, ``num_keypoints_disagree``,
``segment_without_pixels``, ``unused_category``, ``category_spelling``, ``duplicate_image_id``, ``duplicate_annotation_id``,
``duplicate_annotation``, ``same_photograph``, ``shared_between_splits``, ``further_pages``, ``dark_image``.
"""

import filecmp
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from otus.data.checks.derived_fields import StatedSegments, check_num_keypoints, check_segments, stated_segments
from otus.data.checks.labels import Finding, check_labels
from otus.data.checks.near_duplicates import SIDE, find_near_duplicates
from otus.data.dataset import Dataset
from otus.data.formats.interface import Layout
from otus.data.image_files import list_images
from otus.data.images import check_image_size, image_notes, palette_colours, read_image, read_thumbnail
from otus.data.open import choose_layouts, open_layout
from otus.errors import DataError, OtusError, ShapeError
from otus.structures import IGNORE

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")

_FIXED_CATEGORIES = ("dota", "kitti", "sa1b")  # formats whose categories are their own, not the data's


@dataclass(frozen=True)
class DataReport:
    """Result of :func:`check_datasets`.

    Parameters
    ----------
    layouts
        The data sets that were checked.
    image_count, object_count
        Number of distinct image files and number of annotations.
    findings
        The problems, without duplicates.
    per_category
        For each category the number of objects (or of images, for classification) in each layout.
    unlisted
        Image files in the folders of the data sets that none of them lists: no problem, but easily overlooked.
    """

    layouts: tuple[Layout, ...]
    image_count: int
    object_count: int
    findings: tuple[Finding, ...]
    per_category: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unlisted: tuple[Path, ...] = ()

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of findings of each kind, in descending order."""
        return dict(Counter(finding.kind for finding in self.findings).most_common())

    def without(self, kinds: Iterable[str]) -> "DataReport":
        """Return the report without findings of the given kinds."""
        excluded = set(kinds)
        return replace(self, findings=tuple(finding for finding in self.findings if finding.kind not in excluded))


def check_path(
    path: str | Path, *, format: str | None = None, split: str | None = None, progress: Progress | None = None
) -> DataReport:
    """Check all data sets at a path together, or only those of a format and split.

    Raises
    ------
    UsageError
        If there is no data set of that format and split.
    DataError
        If there is no data set.
    """
    layouts = choose_layouts(path, format=format, split=split, secondary=True)
    problems: list[OtusError] = []
    datasets: list[Dataset] = []
    for layout in layouts:
        try:
            datasets.append(open_layout(layout, report=problems.append))
        except (DataError, ShapeError) as error:  # no record of it can be read
            problems.append(error)
    data_report = check_datasets(datasets, problems=problems, progress=progress)
    if split is not None:  # the images of other splits are in the same folders
        return data_report
    return replace(data_report, unlisted=_unlisted_images(datasets))


def check_datasets(
    datasets: Sequence[Dataset], *, problems: Sequence[OtusError] = (), progress: Progress | None = None
) -> DataReport:
    """Check data sets that belong together: the splits of one, or its formats.

    Parameters
    ----------
    datasets
        The data sets; an image file that several of them list is decoded once.
    problems
        Problems that the readers reported; they become findings.
    progress
        Called with the numbers of images checked and of all images.
    """
    findings = [_to_finding(problem, kind="unreadable_annotation") for problem in problems]
    for dataset in datasets:
        findings += [*check_labels(dataset), *check_num_keypoints(dataset), *_palette_mismatches(dataset)]
    sizes: dict[Path, set[tuple[int, int]]] = {}
    for dataset in datasets:
        for i, path in enumerate(_paths(dataset)):
            sizes.setdefault(path, set()).add(dataset.images.size_hw(i))
    maps = [
        (k, dataset, i)
        for k, dataset in enumerate(datasets)
        if dataset.semantic or dataset.panoptic
        for i in range(len(dataset))
    ]
    total = len(sizes) + len(maps)

    thumbnails: dict[Path, np.ndarray] = {}
    for done, (path, result) in enumerate(_in_threads(_thumbnail, sizes), start=1):
        if isinstance(result, Finding):
            findings.append(result)
        else:
            thumbnails[path], actual, notes = result
            findings += [Finding(kind, str(path), None, message) for kind, message in notes.items()]
            findings += _size_mismatches(path, actual, sizes[path])
        if progress:
            progress(done, total)
    used_names = [_used_category_names(dataset) for dataset in datasets]
    stated = [stated_segments(dataset) for dataset in datasets]
    check_map = partial(_check_maps, stated)
    for done, ((k, _, _), (names, map_findings)) in enumerate(_in_threads(check_map, maps), start=len(sizes) + 1):
        used_names[k] |= names
        findings += map_findings
        if progress:
            progress(done, total)

    findings += _unused_categories(datasets, used_names)
    findings += _category_spellings(datasets)
    findings += _same_photographs(datasets, thumbnails)
    return DataReport(
        layouts=tuple(Layout(dataset.format, dataset.source, dataset.split) for dataset in datasets),
        image_count=len(sizes),
        object_count=sum(len(dataset.objects) for dataset in datasets if dataset.objects is not None),
        findings=tuple(dict.fromkeys(findings)),
        per_category=_per_category(datasets),
    )


def _per_category(datasets: Sequence[Dataset]) -> dict[str, tuple[int, ...]]:
    counts: dict[str, list[int]] = {}
    for position, dataset in enumerate(datasets):
        labels = dataset.image_labels if dataset.objects is None else dataset.objects.labels
        if labels is None:
            continue
        label_counts = np.bincount(labels, minlength=len(dataset.categories)).tolist()
        for name, count in zip(dataset.categories, label_counts, strict=True):
            counts.setdefault(name, [0] * len(datasets))[position] = count
    return {name: tuple(label_counts) for name, label_counts in counts.items()}


def _to_finding(error: OtusError, *, kind: str = "", file: Path | str = "") -> Finding:
    if not isinstance(error, DataError):
        return Finding(kind, str(file), None, str(error))
    message = f"{error.problem} ({error.remedy})" if error.remedy else error.problem
    return Finding(error.kind, str(error.file or file), error.where, message)


def _paths(dataset: Dataset) -> list[Path]:
    """Return the images' absolute paths: two formats may refer to one file differently."""
    return [Path(os.path.abspath(dataset.images.path(i))) for i in range(len(dataset))]


def _unlisted_images(datasets: Sequence[Dataset]) -> tuple[Path, ...]:
    listed = {path for dataset in datasets for path in _paths(dataset)}
    folders = sorted({path.parent for path in listed if path.parent.is_dir()})
    return tuple(path for folder in folders for path in list_images(folder) if path not in listed)


def _in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its result, in order; Pillow releases the GIL while decoding."""
    items = list(items)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            yield from zip(items, pool.map(function, items), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _thumbnail(path: Path) -> tuple[np.ndarray, tuple[int, int], dict[str, str]] | Finding:
    try:
        return *read_thumbnail(path, side=SIDE), image_notes(path)
    except OtusError as error:
        return _to_finding(error, file=path)


def _size_mismatches(path: Path, actual: tuple[int, int], stated: set[tuple[int, int]]) -> Iterator[Finding]:
    for size_hw in sorted(stated):
        try:
            check_image_size(actual, size_hw, str(path))
        except DataError as error:
            yield _to_finding(error)


def _used_category_names(dataset: Dataset) -> set[str]:
    labels: set[int] = set()
    if dataset.objects is not None:
        labels.update(np.unique(dataset.objects.labels).tolist())
    if dataset.image_labels is not None:
        labels.update(np.unique(dataset.image_labels).tolist())
    return {dataset.categories[label] for label in labels}


def _check_maps(stated: Sequence[StatedSegments], item: tuple[int, Dataset, int]) -> tuple[set[str], list[Finding]]:
    """Return the category names in the maps of an image, and the findings."""
    k, dataset, index = item
    try:
        semantic, panoptic = dataset.semantic_map(index), dataset.panoptic_map(index)
    except OtusError as error:
        return set(), [_to_finding(error, kind="wrong_map", file=dataset.images.path(index))]
    names: set[str] = set()
    findings: list[Finding] = []
    if semantic is not None:
        names.update(semantic.categories[k] for k in np.unique(semantic.labels).tolist() if k != IGNORE)
        findings += _unknown_values(dataset, index)
    if panoptic is not None:
        names.update(panoptic.categories[segment.label] for segment in panoptic.segments)
        if index in stated[k]:
            findings += check_segments(panoptic, stated[k][index], dataset.source)
    return names, findings


def _unknown_values(dataset: Dataset, index: int) -> Iterator[Finding]:
    """Yield a finding if a label image has values that its source does not define."""
    semantic = dataset.semantic
    values = None if semantic is None else semantic.values(index, dataset.images.size_hw(index))
    if semantic is None or values is None:
        return
    counts = np.bincount(values.ravel(), minlength=256)
    unknown = [value for value in np.flatnonzero(counts).tolist() if semantic.lookup[value] == IGNORE]
    unknown = [value for value in unknown if value not in semantic.void_values]
    if unknown:
        message = f"{int(counts[unknown].sum())} pixels have values without a category and are ignored: {unknown[:5]}"
        message += " (define the values, or correct the pixels)"
        yield Finding("unknown_value", str(semantic.files[index]), None, message)


def _palette_mismatches(dataset: Dataset) -> Iterator[Finding]:
    """Yield a finding for the first label image whose palette differs from earlier ones in the colour of a category."""
    semantic = dataset.semantic
    if semantic is None or semantic.colours:
        return
    first_uses: dict[int, tuple[tuple[int, int, int], Path]] = {}
    for file in semantic.files:
        if file is None or not file.is_file():
            continue
        try:
            colours = palette_colours(file)
        except OtusError:
            continue  # reported where it is decoded
        for value in np.flatnonzero(semantic.lookup[: len(colours)] != IGNORE).tolist():
            colour, first = first_uses.setdefault(value, (colours[value], file))
            if colour != colours[value]:
                message = (
                    f"value {value} ({semantic.categories[int(semantic.lookup[value])]}) is {colours[value]} in its palette "
                    f"and {colour} in {first.name}: only values are used, not colours (were the values renumbered?)"
                )
                yield Finding("palettes_differ", str(file), None, message)
                return


def _unused_categories(datasets: Sequence[Dataset], used: Sequence[set[str]]) -> Iterator[Finding]:
    """Yield categories that the source declares and no split uses."""
    for name_of_format in dict.fromkeys(dataset.format for dataset in datasets):
        if name_of_format in _FIXED_CATEGORIES:
            continue
        members = [k for k, dataset in enumerate(datasets) if dataset.format == name_of_format]
        names_used = set().union(*(used[k] for k in members))
        declared: dict[str, Dataset] = {}
        for dataset in (datasets[k] for k in members):
            # VOC declares categories only in this file; the reader's default, the 20 names of VOC, does not count.
            if dataset.format == "voc" and not (dataset.source / "labelmap.txt").is_file():
                continue
            declared = dict.fromkeys(_category_names(dataset), dataset) | declared
        for name, dataset in declared.items():
            if name not in names_used:
                message = "no object has this category (remove it, or check the labels' names)"
                yield Finding("unused_category", str(dataset.source), f"category {name!r}", message)


def _category_spellings(datasets: Sequence[Dataset]) -> Iterator[Finding]:
    """Yield names of categories that differ only in case, spaces, hyphens and underscores."""
    sources = {(dataset.format, name): dataset.source for dataset in datasets for name in _category_names(dataset)}
    first_names: dict[tuple[str, str], str] = {}
    for (name_of_format, name), source in sorted(sources.items()):
        common_name = re.sub(r"[\s_-]+", " ", name).strip().casefold()
        first = first_names.setdefault((name_of_format, common_name), name)
        if first != name:
            message = f"is spelled {first!r} elsewhere, and these are two categories (give both one name)"
            yield Finding("category_spelling", str(source), f"category {name!r}", message)


def _category_names(dataset: Dataset) -> Iterator[str]:
    maps = [files.categories for files in (dataset.semantic, dataset.panoptic) if files is not None]
    return chain(dataset.categories, *maps)


def _same_photographs(datasets: Sequence[Dataset], thumbnails: dict[Path, np.ndarray]) -> Iterator[Finding]:
    splits = _splits_of_images(datasets)
    for path, names in splits.items():
        if len(names) > 1:
            message = "the image is in each of these splits (keep it in one)"
            yield Finding("shared_between_splits", str(path), " and ".join(sorted(names)), message)
    paths = list(thumbnails)
    splits_of_paths = [frozenset(splits.get(path, ())) for path in paths]
    numbers = {members: number for number, members in enumerate(dict.fromkeys(splits_of_paths))}
    pairs, correlations = find_near_duplicates(
        np.stack([thumbnails[path] for path in paths]) if paths else np.zeros(0),
        np.array([numbers[members] for members in splits_of_paths], dtype=np.int64),
    )
    reported: set[tuple[str, Path]] = set()
    for k in np.argsort(-correlations, kind="stable"):
        first, second = (paths[i] for i in pairs[k])
        splits_second, splits_first = splits.get(second, set()), splits.get(first, set())
        shared = bool(splits_second and splits_first) and splits_second != splits_first
        kind = "shared_between_splits" if shared else "same_photograph"
        if (kind, second) in reported or (
            similarity := _similarity(first, second, thumbnails, float(correlations[k]))
        ) is None:
            continue
        reported.add((kind, second))
        where = " and ".join(sorted(splits_second | splits_first)) if shared else None
        yield Finding(
            kind, str(second), where, f"{similarity} as {first} ({'keep both in one split' if shared else 'keep one'})"
        )


def _splits_of_images(datasets: Sequence[Dataset]) -> dict[Path, set[str]]:
    """Return the splits of each image, without those that are the union of others (trainval)."""
    images: dict[str, set[Path]] = {}
    for dataset in datasets:
        if dataset.split is not None:
            # VOC's "Segmentation/train" is a part of its "train".
            members = images.setdefault(dataset.split.rsplit("/", 1)[-1], set())
            members.update(_paths(dataset))
    splits: dict[Path, set[str]] = {}
    for name, members in images.items():
        parts = [other for other in images.values() if other < members]
        if len(parts) > 1 and set().union(*parts) == members:
            continue
        for path in members:
            splits.setdefault(path, set()).add(name)
    return splits


def _similarity(first: Path, second: Path, thumbnails: dict[Path, np.ndarray], correlation: float) -> str | None:
    if np.array_equal(thumbnails[first], thumbnails[second]):
        if filecmp.cmp(first, second, shallow=False):
            return "the same bytes"
        if np.array_equal(read_image(first), read_image(second)):
            return "the same pixels"
        if np.ptp(thumbnails[first]) == 0:  # of one colour: the thumbnails tell nothing
            return None
    return f"the same photograph (thumbnails agree to {correlation:.3f})"
