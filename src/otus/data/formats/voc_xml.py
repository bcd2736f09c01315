"""Read and write the XML files of Pascal VOC."""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from jaxtyping import Bool

from otus.data.formats.text_files import MAX_NUMBER, decode_text, read_bytes
from otus.data.formats.unread_fields import UnreadFields
from otus.errors import DataError, Report
from otus.structures import BoxFormat, Instances
from otus.structures.boxes import convert

FLAGS = ("difficult", "truncated", "occluded")
_ENCODING = re.compile(rb"""<\?xml[^>]{,100}?encoding=["']([A-Za-z0-9._-]{,40})""")
_BOX_TAGS = ("xmin", "ymin", "xmax", "ymax")
# Tags that are read, or redundant: folder and path of the image, its channels, whether there are masks.
_READ_TAGS = frozenset(("filename", "size", "object", "folder", "path", "segmented"))
_ORIENTED_BOX_TAGS = ("cx", "cy", "w", "h", "angle")
_READ_OBJECT_TAGS = frozenset(("name", "bndbox", "robndbox", *FLAGS))


@dataclass
class Record:
    """Content of one XML file; boxes as stored, 1-based inclusive in VOC proper.

    ``oriented`` has x, y, width, height and angle of roLabelImg's oriented boxes, NaN for others.
    """

    file: Path
    image: str | None = None
    size_hw: tuple[int, int] | None = None
    names: list[str] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    oriented: list[list[float]] = field(default_factory=list)
    flags: list[dict[str, bool]] = field(default_factory=list)


def parse(file: Path) -> ElementTree.Element:
    """Parse an XML file; document type declarations are rejected, since entities can expand without bound."""
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate("utf-8")  # whatever encoding the file declares

    def reject_doctype(*_: object) -> None:
        raise DataError(
            "has a document type declaration", file=file, remedy="VOC files have none: remove the line <!DOCTYPE …>"
        )

    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = reject_doctype
    content = read_bytes(file)
    declared = _ENCODING.match(content)
    text = decode_text(content, file, declared=declared[1].decode() if declared else "")
    try:
        parser.Parse(text.encode(), True)
    except (expat.ExpatError, ValueError) as error:
        raise DataError(f"expected XML, but {error}", file=file, remedy="restore the file") from None
    return builder.close()


def read_xml(file: Path, report: Report, unread: UnreadFields) -> Record:
    """Read the size and objects of a file; invalid objects are reported, unknown elements counted in ``unread``."""
    root = parse(file)
    if root.tag != "annotation":
        raise DataError(f"expected <annotation>, got <{root.tag}>", file=file, remedy="leave this file out")
    image = (root.findtext("filename") or "").strip().replace("\\", "/").rsplit("/", 1)[-1]
    record = Record(file, image=image or None)
    _note_unread(root, "", _READ_TAGS, unread)
    if (size := _single_child(root, "size", file, None)) is not None:
        height, width = (_number(size, tag, file, "size") for tag in ("height", "width"))
        if height >= 1 and width >= 1:  # labelling tools write 0 if the size is unknown
            record.size_hw = int(height), int(width)
    for index, node in enumerate(root.iterfind("object")):
        where = f"object[{index}]"
        try:
            name_node = _single_child(node, "name", file, where)
            name = ("" if name_node is None else name_node.text or "").strip()
            oriented_box = [np.nan] * 5
            if (oriented := _single_child(node, "robndbox", file, where)) is not None:
                oriented_box = [_number(oriented, tag, file, f"{where}.robndbox") for tag in _ORIENTED_BOX_TAGS]
            box_node = _single_child(node, "bndbox", file, where) if oriented is None else oriented
            if not name or box_node is None:
                missing = "bndbox" if name else "name"
                raise DataError(f"has no <{missing}>", file=file, where=where, remedy="add it or remove the object")
            box = (
                [0.0] * 4
                if oriented is not None
                else [_number(box_node, tag, file, f"{where}.bndbox") for tag in _BOX_TAGS]
            )
            # xmax = xmin - 1 is an empty box, not an inverted one; otus doctor reports it.
            if box[2] < box[0] - 1 or box[3] < box[1] - 1:
                raise DataError(
                    f"expected xmin <= xmax and ymin <= ymax, got {box}",
                    file=file,
                    where=f"{where}.bndbox",
                    remedy="swap them or remove the object",
                    kind="inverted_box",
                )
            flags = {
                flag: _number(node, flag, file, where) > 0 for flag in FLAGS if (node.findtext(flag) or "").strip()
            }
        except DataError as problem:
            report(problem)
            continue
        _note_unread(node, "object/", _READ_OBJECT_TAGS, unread)
        record.names.append(name)
        record.boxes.append(box)
        record.oriented.append(oriented_box)
        record.flags.append(flags)
    return record


def _note_unread(node: ElementTree.Element, prefix: str, known: Set[str], unread: UnreadFields) -> None:
    for child in node:
        if child.tag not in known:
            unread.note(prefix + child.tag, [" ".join(" ".join(child.itertext()).split())])


def _single_child(node: ElementTree.Element, tag: str, file: Path, where: str | None) -> ElementTree.Element | None:
    """Return the child with that tag, None if there is none; raise a DataError if there are several."""
    children = node.findall(tag)
    if len(children) > 1:
        problem = f"expected one <{tag}>, got {len(children)}"
        raise DataError(problem, file=file, where=where, remedy="keep one, or make each a separate object")
    return children[0] if children else None


def _number(node: ElementTree.Element, tag: str, file: Path, where: str) -> float:
    child = _single_child(node, tag, file, where)
    text = None if child is None else child.text
    try:
        value = float(text or "")
    except ValueError:
        value = np.nan
    if not abs(value) <= MAX_NUMBER:
        raise DataError(
            f"expected a number, got {text!r}", file=file, where=f"{where}.{tag}", remedy="correct the field"
        )
    return value


def to_xml(image: str, instances: Instances, names: Sequence[str], flags: Mapping[str, Bool[np.ndarray, "n"]]) -> bytes:
    """Return the XML of an image's objects with the given names and flags, at full precision.

    Raises
    ------
    DataError
        If XML cannot hold a name.
    """
    height, width = instances.size_hw
    root = ElementTree.Element("annotation")
    _add(root, filename=image)
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    boxes = convert(instances.boxes_xyxy.astype(np.float64), BoxFormat.XYXY, BoxFormat.VOC).tolist()
    for row, (name, box) in enumerate(zip(names, boxes, strict=True)):
        if not name or not name.isprintable() or name != name.strip():
            raise DataError(f"VOC cannot hold the category {name!r}", remedy="rename it")
        node = ElementTree.SubElement(root, "object")
        _add(node, name=name)
        _add(node, **{flag: int(values[row]) for flag, values in flags.items()})
        _add(ElementTree.SubElement(node, "bndbox"), **dict(zip(_BOX_TAGS, box, strict=True)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, "utf-8", xml_declaration=True)


def _add(parent: ElementTree.Element, **fields: object) -> None:
    for tag, value in fields.items():
        ElementTree.SubElement(parent, tag).text = str(value)
