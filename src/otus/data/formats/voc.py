"""Pascal VOC: an XML file of boxes a picture, and PNG pictures of the pixels of classes and of objects.

Everingham et al., The Pascal Visual Object Classes Challenge, IJCV 2010; the development kit's documentation. ::

    JPEGImages/NAME.jpg  Annotations/NAME.xml  ImageSets/{Main,Segmentation}/SPLIT.txt
    SegmentationClass/NAME.png (category + 1, 0 background, 255 void)  SegmentationObject/NAME.png (k: the k-th object)

Pictures beside their XML files are read too. Boxes are 1-based inclusive, and decimals are kept. A list of categories is
no part of VOC: ``labelmap.txt`` (CVAT's addition) says them where it is, else they are VOC's twenty if all names are of
them, else the names found, sorted. ``part`` and ``pose`` are not read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from scipy.optimize import linear_sum_assignment

from otus.data.dataset import Dataset, Pictures, SemanticFiles
from otus.data.formats.contract import (
    Layout,
    Loss,
    PictureMode,
    Report,
    place_pictures,
    staged_folder,
    stop_at_first,
)
from otus.data.formats.files import LARGEST, first_bytes, flat_names, read_text, relative_name, resolve_inside
from otus.data.formats.losses import losses_of
from otus.data.pictures import (
    picture_files,
    picture_size_hw,
    read_index_picture,
    write_index_picture,
)
from otus.errors import DataError
from otus.structures import IGNORE, BoxFormat, Categories, Masks, Objects, Segmentations
from otus.structures.boxes import area, convert, pairwise_iou

NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_FLAGS = ("difficult", "truncated", "occluded")
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_MIN_IOU = 0.5


@dataclass
class _Record:
    """What one XML file says; boxes 1-based inclusive."""

    file: Path
    picture: str | None = None
    size_hw: tuple[int, int] | None = None
    names: list[str] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    flags: list[dict[str, bool]] = field(default_factory=list)


def find(path: Path) -> list[Layout]:
    """The data sets at a folder: one for each list in ImageSets, else one for all XML files."""
    found = []
    for folder in (path, *sorted(path.glob("VOC*")), *sorted(path.glob("VOCdevkit/VOC*"))):
        lists = _split_lists(folder)
        if (folder / "Annotations").is_dir() and lists:
            found += [Layout("voc", folder, split) for split in lists]
        elif _looks_like_voc(folder / "Annotations") or _looks_like_voc(folder):
            found.append(Layout("voc", folder))
    return found


def _looks_like_voc(folder: Path) -> bool:
    first = next(folder.glob("*.xml"), None)
    return first is not None and b"<annotation" in first_bytes(first, 2000)


def _split_lists(folder: Path) -> dict[str, Path]:
    """The lists of pictures by name of the split; those for a single category (``cat_train``) are left out."""
    lists: dict[str, Path] = {}
    for kind in ("Main", "Segmentation"):
        files = {file.stem: file for file in sorted(folder.glob(f"ImageSets/{kind}/*.txt"))}
        for stem, file in files.items():
            if not any(stem.endswith(f"_{other}") for other in files):
                lists[f"{kind}/{stem}" if stem in lists else stem] = file
    return lists


def read(layout: Layout, *, report: Report = stop_at_first) -> Dataset:
    """The pictures of a split with their boxes and masks.

    ``difficult``, ``truncated`` and ``occluded`` are columns where the files say them. Masks of objects that fit no box
    (see :func:`_match`) are reported and left out.

    Raises
    ------
    DataError, PictureError
        Through ``report``: broken XML, missing fields, inverted boxes, listed pictures without annotation.
    """
    root = layout.source
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    picture_folder = root / "JPEGImages" if (root / "JPEGImages").is_dir() else folder
    pictures = {path.stem: path for path in picture_files(picture_folder)}
    stems = _listed(root, layout.split) if layout.split else sorted(file.stem for file in folder.glob("*.xml"))
    has_classes, has_objects = (root / "SegmentationClass").is_dir(), (root / "SegmentationObject").is_dir()

    records, kept, paths, sizes = [], [], [], []
    for stem in stems:
        class_file = root / "SegmentationClass" / f"{stem}.png"
        try:
            record = _Record(_inside(f"{stem}.xml", folder, root))
            if record.file.is_file():
                record = _read_xml(record.file, report)
            elif stem not in pictures or not (has_classes and class_file.is_file()):
                raise DataError(
                    "there is no such file", file=record.file, remedy="restore it or drop the picture from the list"
                )
            picture = pictures.get(stem) or pictures.get(Path(record.picture or stem).stem)
            picture = picture or _inside(record.picture or f"{stem}.jpg", picture_folder, record.file)
            sizes.append(record.size_hw or picture_size_hw(picture))
        except DataError as problem:
            report(problem)
            continue
        records.append(record)
        kept.append(stem)
        paths.append(picture)

    categories = Categories(_category_names(root, folder, records))
    objects = _objects(records, categories)
    if has_objects:
        files = [root / "SegmentationObject" / f"{stem}.png" for stem in kept]
        objects = _with_masks(objects, files, sizes, report)
    semantic = None
    if has_classes:
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
        pictures=Pictures(
            root=root,
            files=tuple(relative_name(path, root) for path in paths),
            sizes_hw=np.array(sizes, dtype=np.int64),
            ids=tuple(kept),
        ),
        categories=categories,
        objects=objects,
        semantic=semantic,
    )


def _inside(name: str, folder: Path, file: Path) -> Path:
    return resolve_inside(name, folder, within=folder, allow_outside=False, file=file, where="name of a picture")


def _listed(root: Path, split: str) -> list[str]:
    lists = _split_lists(root)
    if split not in lists:
        raise DataError(f"there is no list of {split!r}", file=root / "ImageSets", remedy=f"there are {sorted(lists)}")
    return [line.split()[0] for line in read_text(lists[split]).splitlines() if line.strip()]


def _parse(file: Path) -> ElementTree.Element:
    """The tree of an XML file; document types are refused, since entities can grow without bound."""
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise DataError("has a document type", file=file, remedy="VOC files have none: remove the line <!DOCTYPE …>")

    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(file.read_bytes(), True)
    except (expat.ExpatError, LookupError, ValueError, OSError) as error:
        raise DataError(f"expected XML, but {error}", file=file, remedy="restore the file") from None
    return builder.close()


def _read_xml(file: Path, report: Report) -> _Record:
    root = _parse(file)
    if root.tag != "annotation":
        raise DataError(f"expected <annotation>, got <{root.tag}>", file=file, remedy="leave this file out")
    picture = (root.findtext("filename") or "").strip().replace("\\", "/").rsplit("/", 1)[-1]
    record = _Record(file, picture=picture or None)
    if (size := root.find("size")) is not None:
        height, width = (_number(size, tag, file, "size") for tag in ("height", "width"))
        if height >= 1 and width >= 1:  # labelling tools write 0 where they do not know
            record.size_hw = int(height), int(width)
    for index, node in enumerate(root.iterfind("object")):
        where = f"object[{index}]"
        try:
            name = (node.findtext("name") or "").strip()
            box = node.find("bndbox")
            if not name or box is None:
                missing = "bndbox" if name else "name"
                raise DataError(f"has no <{missing}>", file=file, where=where, remedy="add it or remove the object")
            sides = [_number(box, side, file, f"{where}.bndbox") for side in _SIDES]
            # Right = left - 1 would be a box without area, which is doctor's to judge, not inverted.
            if sides[2] < sides[0] - 1 or sides[3] < sides[1] - 1:
                raise DataError(
                    f"expected xmin <= xmax and ymin <= ymax, got {sides}",
                    file=file,
                    where=f"{where}.bndbox",
                    remedy="exchange the sides or remove the object",
                    kind="inverted_box",
                )
            flags = {
                flag: _number(node, flag, file, where) > 0 for flag in _FLAGS if (node.findtext(flag) or "").strip()
            }
        except DataError as problem:
            report(problem)
            continue
        record.names.append(name)
        record.boxes.append(sides)
        record.flags.append(flags)
    return record


def _number(node: ElementTree.Element, tag: str, file: Path, where: str) -> float:
    text = node.findtext(tag)
    try:
        value = float(text or "")
    except ValueError:
        value = np.nan
    if not abs(value) <= LARGEST:
        raise DataError(
            f"expected a number, got {text!r}", file=file, where=f"{where}.{tag}", remedy="correct the field"
        )
    return value


def _category_names(root: Path, folder: Path, records: list[_Record]) -> tuple[str, ...]:
    label_map = root / "labelmap.txt"
    found = {name for record in records for name in record.names}
    if label_map.is_file():
        lines = [line for line in read_text(label_map).splitlines() if line.strip() and not line.startswith("#")]
        names = [line.rsplit(":", 3)[0] for line in lines]
        if names[:1] == ["background"]:
            del names[0]
        if unknown := sorted(found - set(names)):
            raise DataError(f"does not have the categories {unknown}", file=label_map, remedy="add a line for each")
        return tuple(dict.fromkeys(names))
    if found <= set(NAMES):
        return NAMES
    for file in folder.glob("*.xml"):  # of the other splits too, so that labels mean the same in each
        try:
            found.update((node.findtext("name") or "").strip() for node in _parse(file).iterfind("object"))
        except DataError:  # reported where its split is read
            continue
    return tuple(sorted(found - {""}))


def _objects(records: list[_Record], categories: Categories) -> Objects:
    label_of = {name: label for label, name in enumerate(categories)}
    flags = [one for record in records for one in record.flags]
    boxes = np.array([box for record in records for box in record.boxes], dtype=np.float64).reshape(-1, 4)
    return Objects.build(
        picture=np.repeat(np.arange(len(records)), [len(record.names) for record in records]),
        labels=[label_of[name] for record in records for name in record.names],
        boxes_xyxy=convert(boxes, BoxFormat.VOC, BoxFormat.XYXY),
        columns={
            flag: np.array([one.get(flag, False) for one in flags], dtype=bool)
            for flag in _FLAGS
            if any(flag in one for one in flags)
        },
    )


def _with_masks(objects: Objects, files: list[Path], sizes: list[tuple[int, int]], report: Report) -> Objects:
    """The objects with the masks of the pictures of objects."""
    outlines: list[bytes | None] = [None] * len(objects)
    areas = objects.areas.copy()
    bounds = np.searchsorted(objects.picture, np.arange(len(files) + 1))
    for picture, file in enumerate(files):
        if not file.is_file():
            continue
        try:
            values = read_index_picture(file, expected_size_hw=sizes[picture])
        except DataError as problem:
            report(problem)
            continue
        indices = np.flatnonzero(np.bincount(values.ravel(), minlength=256)[1:IGNORE]) + 1
        masks = Masks.from_dense(values[None] == indices[:, None, None]).to_rle()
        mask_areas, counts = masks.area(), [one["counts"] for one in masks.rle()]
        here = slice(bounds[picture], bounds[picture + 1])
        for row, place in enumerate(_match(indices, masks.boxes_xyxy(), objects.boxes_xyxy[here])):
            if place is None:
                report(
                    DataError(
                        f"the mask of value {indices[row]} fits none of the {here.stop - here.start} boxes",
                        file=file,
                        where=f"value {indices[row]}",
                        remedy="number the masks in the order of the XML's objects, or correct the boxes",
                        kind="mask_without_box",
                    )
                )
                continue
            outlines[here.start + place] = counts[row]  # type: ignore[call-overload]
            areas[here.start + place] = mask_areas[row]
    columns = {one: getattr(objects, one) for one in ("picture", "labels", "boxes_xyxy", "columns")}
    return Objects.build(**columns, areas=areas, segmentations=Segmentations.build(outlines))


def _match(indices: np.ndarray, mask_boxes: np.ndarray, boxes: np.ndarray) -> list[int | None]:
    """Which object each mask is: number k the k-th, if every mask fits its own box, else the one whose box fits best.

    A mask fits a box from an IoU of 0.5, and its own also if it lies in it: an object partly hidden.
    """
    own = indices - 1
    iou = pairwise_iou(mask_boxes, boxes)
    if len(own) and own.max() < len(boxes):
        inner = _cut(mask_boxes, boxes[own] + [-1, -1, 1, 1])
        inside = area(inner) >= 0.9 * area(mask_boxes)
        if (inside | (iou[np.arange(len(own)), own] >= _MIN_IOU)).all():
            return [int(k) for k in own]
    match: list[int | None] = [None] * len(indices)
    for row, column in zip(*linear_sum_assignment(-iou), strict=True):
        if iou[row, column] >= _MIN_IOU:
            match[row] = int(column)
    return match


def _cut(boxes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The part of each box that lies in its own frame."""
    return np.concatenate([np.maximum(boxes[:, :2], frames[:, :2]), np.minimum(boxes[:, 2:], frames[:, 2:])], axis=1)


def write(dataset: Dataset, folder: Path, *, pictures: PictureMode = "copy") -> list[Loss]:
    """Write a data set as VOC, with ``labelmap.txt`` so that the categories come back in their order.

    Masks of objects become one picture of objects, where a smaller one hides a larger; pixels lost so are reported, as
    are objects beyond the 254 that such a picture can number.
    """
    holds_semantic = dataset.semantic is not None and _is_background_first(
        dataset.semantic.categories, dataset.categories
    )
    can_hold = {*_FLAGS, "outline", "holes", "parts"} | ({"semantic"} if holds_semantic else set())
    losses = losses_of(dataset, can_hold=frozenset(can_hold))
    names = flat_names(dataset.pictures.files)
    with staged_folder(folder) as stage:
        for part in ("JPEGImages", "Annotations"):
            (stage / part).mkdir()
        place_pictures(dataset, stage / "JPEGImages", pictures, names=names)
        (stage / "labelmap.txt").write_text(_label_map(dataset.categories), encoding="utf-8")
        if dataset.split:
            lists = stage / "ImageSets" / "Main"
            lists.mkdir(parents=True)
            text = "".join(f"{Path(name).stem}\n" for name in names)
            (lists / f"{dataset.split.replace('/', '_')}.txt").write_text(text, encoding="utf-8")
        for index, name in enumerate(names):
            stem = Path(name).stem
            ElementTree.ElementTree(_xml(dataset, index, name)).write(stage / "Annotations" / f"{stem}.xml", "utf-8")
            losses += _write_object_masks(dataset, index, stage / "SegmentationObject" / f"{stem}.png")
            if holds_semantic and (semantic := dataset.semantic_map(index)) is not None:
                write_index_picture(stage / "SegmentationClass" / f"{stem}.png", semantic.labels, palette=_palette())
    return losses


def _is_background_first(semantic: Categories, categories: Categories) -> bool:
    return tuple(semantic) == ("background", *categories)


def _label_map(categories: Categories) -> str:
    rows = zip(("background", *categories), cycle(_palette().tolist()), strict=False)
    lines = [f"{name}:{red},{green},{blue}::\n" for name, (red, green, blue) in rows]
    return "# label:color_rgb:parts:actions\n" + "".join(lines)


def _palette() -> np.ndarray:
    """VOC's colours (256, 3): the bits of the index spread over red, green and blue, highest bits first."""
    index, colours = np.arange(256), np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def _xml(dataset: Dataset, index: int, name: str) -> ElementTree.Element:
    instances = dataset.instances(index)
    height, width = instances.size_hw
    root = ElementTree.Element("annotation")
    _add(root, filename=name)
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    flags = {flag: instances.columns[flag] > 0 for flag in _FLAGS if flag in instances.columns}
    boxes = convert(instances.boxes_xyxy.astype(np.float64), BoxFormat.XYXY, BoxFormat.VOC).tolist()
    for row, box in enumerate(boxes):
        node = ElementTree.SubElement(root, "object")
        _add(node, name=dataset.categories[int(instances.labels[row])])
        _add(node, **{flag: int(values[row]) for flag, values in flags.items()})
        _add(ElementTree.SubElement(node, "bndbox"), **dict(zip(_SIDES, box, strict=True)))
    ElementTree.indent(root)
    return root


def _add(parent: ElementTree.Element, **fields: object) -> None:
    for tag, value in fields.items():
        ElementTree.SubElement(parent, tag).text = str(value)


def _write_object_masks(dataset: Dataset, index: int, file: Path) -> Iterator[Loss]:
    instances = dataset.instances(index)
    if instances.masks is None:
        return
    values = np.zeros(instances.size_hw, dtype=np.int64)
    areas = instances.masks.area()
    for row in np.argsort(-areas[:254], kind="stable"):
        values[instances.masks[row].dense()[0]] = row + 1
    write_index_picture(file, values, palette=_palette())
    left = np.bincount(values.ravel(), minlength=len(instances) + 1)[1:]
    for row, pixels in enumerate(areas):
        if pixels > left[row]:
            lost = f"{int(pixels - left[row])} of {int(pixels)} pixels of its mask, hidden or beyond 254 objects"
            yield Loss("overlap", dataset.pictures.files[index], int(instances.columns["ids"][row]), lost)
