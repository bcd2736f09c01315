"""Pascal VOC: an XML file of boxes per image, and PNGs of class and object labels.

Everingham et al., The Pascal Visual Object Classes Challenge, IJCV 2010; the development kit's documentation. ::

    JPEGImages/NAME.jpg  Annotations/NAME.xml  ImageSets/{Main,Segmentation}/SPLIT.txt
    SegmentationClass/NAME.png (category + 1, 0 background, 255 void)  SegmentationObject/NAME.png (k: the k-th object)

Also read are ``images/`` beside ``annotations/``, images beside their XML files, and a folder of either for each split.
Boxes are 1-based with inclusive ends, and decimals are kept. The format ``voc_from_0`` reads files of programs that
count from 0, with coordinates unchanged. ``robndbox`` (roLabelImg) is an oriented box. VOC has no list of categories:
they are those of ``labelmap.txt`` (CVAT's addition) if it exists, else VOC's twenty if these include all names in use,
else the names in use, sorted. Other fields (``part``, ``pose`` …) are counted and dropped.
"""

import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from otus._files import staged_folder
from otus.data.dataset import Dataset, Images, SemanticFiles
from otus.data.formats.conversion_losses import boolean_columns, find_losses
from otus.data.formats.interface import (
    ConversionLoss,
    ImageMode,
    Layout,
    as_splits,
    copy_or_link_images,
    duplicate_image_error,
    split_file_name,
    split_name_losses,
)
from otus.data.formats.paths import (
    SPLIT_FOLDERS,
    flat_names_per_split,
    list_files,
    relative_name,
    resolve_inside,
    sample_files,
    subfolders,
)
from otus.data.formats.text_files import read_head, read_name_list, read_text
from otus.data.formats.unread_fields import UnreadFields
from otus.data.formats.voc_masks import add_masks, palette, write_object_masks
from otus.data.formats.voc_xml import FLAGS, Record, parse, read_xml, to_xml
from otus.data.image_files import list_images
from otus.data.image_writing import write_label_image
from otus.data.images import image_size_hw
from otus.errors import DataError, Report, stop_at_first
from otus.structures import IGNORE, BoxFormat, Categories, Instances, Objects, oriented
from otus.structures.boxes import area, convert

NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

ZERO_BASED = "voc_from_0"
_LABEL_FOLDERS, _IMAGE_FOLDERS = ("Annotations", "annotations", "xmls"), ("JPEGImages", "images", "Images")
_FLAG = re.compile(r"\s+(?:-1|0|1)$")  # after each name in the list of a category: absent, difficult, present
_SAMPLE_LINES = 8


def find(path: Path) -> list[Layout]:
    """Find data sets: one per list in ImageSets, else one for all XML files, or one per split folder."""
    layouts = []
    for folder in (path, *sorted(path.glob("VOC*")), *sorted(path.glob("VOCdevkit/VOC*"))):
        lists = _split_lists(folder)
        if (folder / "Annotations").is_dir() and lists:
            layouts += [Layout("voc", folder, split) for split in lists]
        elif _has_voc_xml(_label_folder(folder)) or _has_voc_xml(folder):
            layouts.append(Layout("voc", folder))
    splits = [split for split in subfolders(path) if split.name.lower() in SPLIT_FOLDERS] if not layouts else []
    return layouts or [Layout("voc", path, split.name) for split in splits if _has_voc_xml(_label_folder(split))]


def _label_folder(folder: Path) -> Path:
    return next((folder / name for name in _LABEL_FOLDERS if (folder / name).is_dir()), folder)


def _has_voc_xml(folder: Path) -> bool:
    return any(
        re.search(rb"<annotation[\s>]", read_head(file, 2000)) for file in sample_files(list_files(folder, "*.xml"))
    )


def _split_lists(folder: Path) -> dict[str, Path]:
    """Return the image lists by split, without lists for a single category (``cat_train``)."""
    lists: dict[str, Path] = {}
    for kind in ("Main", "Segmentation"):
        files = {file.stem: file for file in list_files(folder / "ImageSets" / kind, "*.txt")}
        for stem, file in files.items():
            # The name is not enough: extra_train beside train is a split of its own.
            if not (any(stem.endswith(f"_{other}") for other in files) and _is_of_one_category(file)):
                lists[f"{kind}/{stem}" if stem in lists else stem] = file
    return lists


def _is_of_one_category(file: Path) -> bool:
    """Return whether the first lines of a list end with the flags (-1, 0, 1) of a list for a single category."""
    lines = read_head(file, 4000).decode(errors="replace").splitlines()[:_SAMPLE_LINES]
    return all(_FLAG.search(line.rstrip()) for line in lines if line.strip())


def read(layout: Layout, *, report: Report = stop_at_first) -> Dataset:
    """Read the images of a split with boxes and masks.

    ``difficult``, ``truncated`` and ``occluded`` become columns if the files contain them. Object masks that match no
    box are dropped.

    Raises
    ------
    DataError, ImageError
        Through ``report``: broken XML, missing fields, inverted boxes, listed images without annotation.
    """
    root = layout.source
    is_listed = layout.split is not None and not (root / layout.split).is_dir()
    base = root / (layout.split or "") if not is_listed else root
    folder = _label_folder(base)
    image_folder = next((base / name for name in _IMAGE_FOLDERS if (base / name).is_dir()), folder)
    images = {path.stem: path for path in list_images(image_folder)}
    labelled = [file.stem for file in list_files(folder, "*.xml")]
    stems = _listed_stems(root, layout.split, {*labelled, *images}) if layout.split and is_listed else labelled
    has_classes, has_objects = (root / "SegmentationClass").is_dir(), (root / "SegmentationObject").is_dir()

    records, kept, paths, sizes = [], [], [], []
    unread = UnreadFields()
    for stem in stems:
        class_file = root / "SegmentationClass" / f"{stem}.png"
        try:
            record = Record(_inside(f"{stem}.xml", folder, root))
            if record.file.is_file():
                record = read_xml(record.file, report, unread)
            elif stem not in images or not (has_classes and class_file.is_file()):
                raise DataError(
                    "there is no such file", file=record.file, remedy="restore it or drop the image from the list"
                )
            image = images.get(stem) or images.get(Path(record.image or stem).stem)
            image = image or _missing_path(record.image or f"{stem}.jpg", image_folder, record.file)
            sizes.append(record.size_hw or image_size_hw(image))
        except DataError as problem:
            report(problem)
            continue
        records.append(record)
        kept.append(stem)
        paths.append(image)

    folders = [folder] if base == root else [_label_folder(part) for part in subfolders(root)]
    categories = Categories(_category_names(root, folders, records))
    objects = _objects(records, categories, BoxFormat.XYXY if layout.format == ZERO_BASED else BoxFormat.VOC)
    if has_objects:
        files = [root / "SegmentationObject" / f"{stem}.png" for stem in kept]
        objects = add_masks(objects, files, sizes, report)
    semantic = None
    if has_classes:
        if "background" in categories:
            raise DataError(
                "an object has the category 'background', which SegmentationClass has for pixels without object",
                file=next((record.file for record in records if "background" in record.names), root),
                remedy="rename the category, or remove the object",
            )
        class_files = [root / "SegmentationClass" / f"{stem}.png" for stem in kept]
        semantic = SemanticFiles(
            files=tuple(file if file.is_file() else None for file in class_files),
            categories=Categories(("background", *categories)),
            lookup=np.where(np.arange(256) <= len(categories), np.arange(256), IGNORE),
        )
    return Dataset(
        source=root,
        format="voc",
        split=layout.split,
        images=Images(
            root=root,
            files=tuple(relative_name(path, root) for path in paths),
            sizes_hw=np.array(sizes, dtype=np.int64),
            ids=tuple(kept),
        ),
        categories=categories,
        objects=objects,
        semantic=semantic,
        unread=unread.finish(),
    )


def _inside(name: str, folder: Path, file: Path) -> Path:
    return resolve_inside(name, folder, within=folder, allow_outside=False, file=file, where="name of an image")


def _missing_path(name: str, folder: Path, file: Path) -> Path:
    """Return the expected path of a missing image: JPEGImages/a.jpg, not JPEGImages/JPEGImages/a.jpg."""
    path = _inside(name, folder, file)
    return path if path.parent.is_dir() else folder / path.name


def _listed_stems(root: Path, split: str, known: set[str]) -> list[str]:
    """Return the file stems in an image list (they may contain spaces), without trailing flags."""
    lists = _split_lists(root)
    if split not in lists:
        raise DataError(
            f"no image list for the split {split!r}", file=root / "ImageSets", remedy=f"there are {sorted(lists)}"
        )
    return [line if line in known else _FLAG.sub("", line) for _, line in read_name_list(lists[split])]


def _category_names(root: Path, folders: list[Path], records: list[Record]) -> tuple[str, ...]:
    label_map = root / "labelmap.txt"
    used = {name for record in records for name in record.names}
    if label_map.is_file():
        lines = [line for line in read_text(label_map).splitlines() if line.strip()]
        # The first line may be a header. In later lines # may start a name; the line is a comment if it has fewer than
        # three colons.
        lines = [line for i, line in enumerate(lines) if not line.startswith("#") or (i > 0 and line.count(":") >= 3)]
        names = [line.rsplit(":", 3)[0] for line in lines]
        if names[:1] == ["background"]:
            del names[0]
        if unknown := sorted(used - set(names)):
            raise DataError(f"lacks the categories {unknown}", file=label_map, remedy="add a line for each")
        return tuple(dict.fromkeys(names))
    if used <= set(NAMES):
        return NAMES
    # Include the names of the other splits, so that class indices agree between splits.
    for file in (file for folder in folders for file in list_files(folder, "*.xml")):
        try:
            used.update((node.findtext("name") or "").strip() for node in parse(file).iterfind("object"))
        except DataError:  # reported when its split is read
            continue
    return tuple(sorted(used - {""}))


def _objects(records: list[Record], categories: Categories, box_format: BoxFormat) -> Objects:
    label_of = {name: label for label, name in enumerate(categories)}
    all_flags = [flags for record in records for flags in record.flags]
    boxes = np.array([box for record in records for box in record.boxes], dtype=np.float64).reshape(-1, 4)
    boxes = convert(boxes, box_format, BoxFormat.XYXY)
    oriented_boxes = np.array([box for record in records for box in record.oriented], dtype=np.float64).reshape(-1, 5)
    is_oriented = ~np.isnan(oriented_boxes[:, 0])
    areas, optional = area(boxes), {}
    if is_oriented.any():
        optional["corners_xy"] = oriented.corners(oriented_boxes)
        boxes[is_oriented] = oriented.enclosing_boxes(oriented_boxes[is_oriented])
        areas[is_oriented] = oriented.areas_of_corners(optional["corners_xy"][is_oriented])
    return Objects.build(
        image_index=np.repeat(np.arange(len(records)), [len(record.names) for record in records]),
        labels=[label_of[name] for record in records for name in record.names],
        boxes_xyxy=boxes,
        areas=areas,
        **optional,
        columns={
            flag: np.array([flags.get(flag, False) for flags in all_flags], dtype=bool)
            for flag in FLAGS
            if any(flag in flags for flags in all_flags)
        },
    )


def write(datasets: Dataset | Sequence[Dataset], folder: Path, *, images: ImageMode = "copy") -> list[ConversionLoss]:
    """Write a data set, or its splits, as VOC, with ``labelmap.txt`` to keep the order of the categories.

    The masks of an image become a single PNG of object indices, in which smaller objects are drawn over larger ones.
    Hidden pixels are reported as losses, as are objects beyond the 254 that such a PNG can index.

    Raises
    ------
    DataError
        If XML cannot represent the name of a category, or an image is in two splits with separate labels.
    """
    losses: list[ConversionLoss] = []
    splits = as_splits(datasets)
    with staged_folder(folder) as stage:
        for part in ("JPEGImages", "Annotations"):
            (stage / part).mkdir()
        (stage / "labelmap.txt").write_text(_label_map(_names(splits[0])), encoding="utf-8")
        for dataset, names in zip(splits, flat_names_per_split(splits), strict=True):
            copy_or_link_images(dataset, stage / "JPEGImages", images, names=names)
            losses += _write_split(dataset, stage, names) + split_name_losses(dataset, split_file_name(dataset))
    return losses


def _write_split(dataset: Dataset, folder: Path, names: list[str]) -> list[ConversionLoss]:
    if dataset.split:
        lists = folder / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{Path(name).stem}\n" for name in names)
        (lists / f"{split_file_name(dataset)}.txt").write_text(text, encoding="utf-8")
    with_semantic = has_voc_semantic(dataset)
    objects = dataset.objects if dataset.objects is not None else Objects.empty()
    flags = {name: column for name, column in boolean_columns(objects).items() if name in FLAGS}
    bounds = np.searchsorted(objects.image_index, np.arange(len(dataset) + 1))
    losses: list[ConversionLoss] = []
    areas = [np.zeros(0)]
    for index, name in enumerate(names):
        stem = Path(name).stem
        instances = dataset.instances(index)
        names_of_objects = [dataset.categories[label] for label in instances.labels.tolist()]
        rows = slice(bounds[index], bounds[index + 1])
        xml = to_xml(name, instances, names_of_objects, {flag: column[rows] for flag, column in flags.items()})
        file = folder / "Annotations" / f"{stem}.xml"
        if file.exists() and dataset.format != "voc":  # the splits of VOC share annotation files
            raise duplicate_image_error(dataset, index)
        file.write_bytes(xml)
        losses += write_object_masks(dataset, index, folder / "SegmentationObject" / f"{stem}.png")
        areas.append(_areas(instances))
        if with_semantic and (semantic := dataset.semantic_map(index)) is not None:
            write_label_image(folder / "SegmentationClass" / f"{stem}.png", semantic.labels, palette=palette())
    can_hold = {*flags, "outline", "holes", "parts"} | ({"semantic"} if with_semantic else set())
    return find_losses(dataset, can_hold=frozenset(can_hold), areas=np.concatenate(areas)) + losses


def _areas(instances: Instances) -> np.ndarray:
    """Return areas as a reader computes them: of the mask, else of the box."""
    areas = area(instances.boxes_xyxy)
    if instances.masks is None:
        return areas
    pixels = instances.masks.area()
    return np.where(pixels > 0, pixels, areas)


def has_voc_semantic(dataset: Dataset) -> bool:
    """Return whether the semantic categories are VOC's: background, then those of the objects."""
    return dataset.semantic is not None and dataset.semantic.categories.names == ("background", *_names(dataset))


def _names(dataset: Dataset) -> tuple[str, ...]:
    """Return the categories of objects; with maps only, those of the maps without background."""
    if dataset.objects is None and dataset.semantic is not None and dataset.semantic.categories[0] == "background":
        return dataset.semantic.categories.names[1:]
    return dataset.categories.names


def _label_map(names: tuple[str, ...]) -> str:
    rows = zip(("background", *names), cycle(palette().tolist()), strict=False)
    lines = [f"{name}:{red},{green},{blue}::\n" for name, (red, green, blue) in rows]
    return "# label:color_rgb:parts:actions\n" + "".join(lines)
