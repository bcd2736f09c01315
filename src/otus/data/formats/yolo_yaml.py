"""YOLO's ``data.yaml``: categories, keypoints, and the images of each split."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short  # aliases can make a value endless to print
from typing import Any

import yaml

from otus.data.dataset import UnreadField
from otus.data.formats.paths import SPLIT_FOLDERS, list_files, resolve_inside, sample_files, subfolders
from otus.data.formats.text_files import read_head, read_name_list, read_text
from otus.data.formats.unread_fields import UnreadFields
from otus.data.image_files import IMAGE_SUFFIXES
from otus.errors import DataError
from otus.structures import Categories, KeypointNames

_SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
SPLITS = tuple(_SPLIT_KEYS)
MAX_CATEGORIES = 20_000  # more is a mistake
_READ_KEYS = frozenset(("path", "names", "nc", "kpt_shape", "kpt_names", "flip_idx"))
_MAX_KEYPOINTS = 1_000
_MAX_BYTES = 2_000_000  # parsing 20,000 names takes seconds
_NUMBER = re.compile(r"-?\d*\.?\d+(?:[eE]-?\d+)?")
_DEEP_NESTING = re.compile(r"(?:[\[{][^\[\]{}]*){100}")


class _UniqueKeys(yaml.SafeLoader):  # not the faster CSafeLoader: deep nesting overflows its stack
    """YAML loader that rejects duplicate keys, of which PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        duplicate = next((key for key, count in Counter(keys).items() if count > 1), None)
        if duplicate is not None:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {duplicate!r}", node.start_mark)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class YoloDescription:
    """Content of a data.yaml, or the same derived from the folders if there is none."""

    root: Path
    splits: dict[str, list[Path]]
    categories: Categories | None = None
    keypoint_shape: tuple[int, int] | None = None
    unread: tuple[UnreadField, ...] = ()


def split_folders(root: Path) -> dict[str, list[Path]]:
    """Return image folders by split ('' for none) that have matching label files."""
    if (root / "images").is_dir() and list_files(root / "labels", "**/*.txt"):
        parts = subfolders(root / "images")
        return {part.name: [part] for part in parts} or {"": [root / "images"]}
    splits = {name: root / name / "images" for name in SPLIT_FOLDERS}
    folders = {name: [part] for name, part in splits.items() if part.is_dir() and (root / name / "labels").is_dir()}
    flat = {name: [root / name] for name in ("", *splits) if _is_flat(root / name)}
    return folders or ({"": flat[""]} if "" in flat else flat)


def split_keys(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the key of each split that a description names: ``val`` may also be written ``valid`` or ``validation``."""
    named = {split: [key for key in keys if content.get(key)] for split, keys in _SPLIT_KEYS.items()}
    return {split: keys[0] for split, keys in named.items() if keys}


def _is_flat(folder: Path) -> bool:
    """Return whether images lie beside their label files, as labelImg saves them."""
    for file in sample_files([file for file in list_files(folder, "*.txt") if file.name != "classes.txt"]):
        if any(file.with_suffix(suffix).is_file() for suffix in IMAGE_SUFFIXES):
            words = read_head(file, 4000).decode(errors="replace").partition("\n")[0].split()
            if len(words) >= 5 and words[0].isdecimal() and all(_NUMBER.fullmatch(word) for word in words):
                return True
    return False


def is_darknet(file: Path) -> bool:
    """Return whether a file is Darknet's ``.data`` file: lines ``train = …``, ``valid = …``, ``names = …``."""
    return file.suffix == ".data" and bool(re.search(rb"(?m)^\s*(?:train|valid)\s*=", read_head(file, 4000)))


def _read_darknet(source: Path) -> YoloDescription:
    """Read a Darknet ``.data`` file, also CVAT's "YOLO 1.1".

    Its paths are relative to an unknown folder: the longest trailing part that exists beside the file is used.
    """
    entries = {
        key.strip(): value.strip() for key, _, value in (line.partition("=") for _, line in read_name_list(source))
    }
    splits = {
        split: [resolve_beside(entries[key], source.parent, file=source, where=key)]
        for split, key in split_keys(entries).items()
    }
    categories = None
    if "names" in entries:
        categories = read_class_list(resolve_beside(entries["names"], source.parent, file=source, where="names"))
    return YoloDescription(source.parent, splits, categories)


def read_class_list(file: Path) -> Categories:
    """Return the categories that a file lists, one per line; the category of a blank line is named by its index."""
    lines = read_text(file).rstrip().splitlines()
    return Categories(_unique([line.strip() or str(index) for index, line in enumerate(lines)], file))


def _unique(names: list[str], file: Path, where: str | None = None) -> tuple[str, ...]:
    """Return the names of categories; raise a DataError if one occurs twice."""
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        remedy = "give each category a different name"
        raise DataError(f"duplicate names: {', '.join(duplicates):.60}", file=file, where=where, remedy=remedy)
    return tuple(names)


def resolve_beside(name: str, folder: Path, *, file: Path, where: str) -> Path:
    """Resolve a path to its longest trailing part that exists; the leading folders may be another machine's."""
    parts = Path(name.replace("\\", "/")).parts
    trailing = [os.path.join(*parts[i:]) for i in range(len(parts)) if parts[i] != os.sep and ".." not in parts[i:]]
    path = next((part for part in trailing if os.path.exists(folder / part)), trailing[0] if trailing else name)
    return resolve_inside(path, folder, within=folder, allow_outside=False, file=file, where=where)


def load_yaml(file: Path) -> dict[str, Any]:
    """Load a YAML file that holds a mapping."""
    if os.path.isfile(file) and os.path.getsize(file) > _MAX_BYTES:
        raise DataError("is too large for a description of a data set", file=file, remedy="give the right file")
    try:
        text = read_text(file)
        if _DEEP_NESTING.search(text):  # parsing time grows with the square of the depth
            raise ValueError("brackets are nested too deep")
        content = yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"expected YAML, but {error}", file=file, remedy="correct the file") from None
    if not isinstance(content, dict):
        got = "nothing" if content is None else type(content).__name__
        raise DataError(
            f"expected a mapping with names, train and val, got {got}",
            file=file,
            remedy="write one, or give the folder",
        )
    return content


def read_description(source: Path, *, allow_outside: bool = False) -> YoloDescription:
    """Read a data.yaml, or describe a folder without one."""
    if not source.is_file():
        return YoloDescription(source, split_folders(source))
    if source.suffix == ".data":
        return _read_darknet(source)
    content = load_yaml(source)

    def resolve(value: object, folder: Path, where: str) -> Path:
        if not isinstance(value, str | None):
            raise DataError(f"expected a path, got {short(value)}", file=source, where=where, remedy="write a string")
        if value and value.startswith("../") and not os.path.exists(folder / value):
            value = value[3:]  # Roboflow writes ../ for its own folder
        return resolve_inside(
            value or ".", folder, within=source.parent, allow_outside=allow_outside, file=source, where=where
        )

    root = resolve(content.get("path"), source.parent, "path")
    keys, splits = split_keys(content), {}
    for split, key in keys.items():
        entries = content[key] if isinstance(content[key], list) else [content[key]]
        splits[split] = [resolve(entry, root, key) for entry in entries]
    categories = _names(content, source)
    keypoint_shape = _keypoint_shape(content, source)
    if keypoint_shape is not None and categories:
        schemes = _keypoint_names(content, categories, keypoint_shape[0], source)
        categories = Categories(categories.names, keypoints=schemes)
    unread = UnreadFields()
    for name, value in content.items():
        if name not in {*_READ_KEYS, *keys.values()}:
            unread.note(f"{source.name}: {name}", [value])
    return YoloDescription(root, splits, categories, keypoint_shape, unread.finish())


def _as_list(value: object, field: str, file: Path) -> list[Any]:
    """Return a list, also from a mapping with keys 0, 1, 2 … without gaps."""
    if isinstance(value, dict) and set(value) == set(range(len(value))):
        return [value[index] for index in range(len(value))]
    if isinstance(value, list):
        return value
    got = f"the keys {short(list(value))}" if isinstance(value, dict) else short(value)
    raise DataError(
        f"expected a list, or a mapping from 0, 1, 2 …, got {got}",
        file=file,
        where=field,
        remedy="number them without gaps",
    )


def _names(content: dict[str, Any], file: Path) -> Categories | None:
    count = content.get("nc")
    if count is not None and (not isinstance(count, int) or not 0 < count <= MAX_CATEGORIES):
        raise DataError(
            f"expected the number of categories, got {short(count)}", file=file, where="nc", remedy="correct it"
        )
    if content.get("names") is None:
        return None if count is None else Categories(tuple(str(index) for index in range(count)))
    names = _as_list(content["names"], "names", file)
    for index, name in enumerate(names):
        if not isinstance(name, str | int) or isinstance(name, bool):
            remedy = "put it in quotes: YAML takes yes, no, on and off for true and false"
            raise DataError(f"expected a string, got {short(name)}", file=file, where=f"names[{index}]", remedy=remedy)
    if count is not None and count != len(names):
        raise DataError(
            f"expected nc: {len(names)}, one per name, got {count}", file=file, where="nc", remedy="correct one"
        )
    return Categories(_unique([str(name) for name in names], file, "names"))


def _keypoint_shape(content: dict[str, Any], file: Path) -> tuple[int, int] | None:
    match content.get("kpt_shape"):
        case None:
            return None
        case [int(count), (2 | 3) as numbers_each] if 0 < count <= _MAX_KEYPOINTS:
            return count, numbers_each
        case other:
            raise DataError(
                f"expected [K, 2] or [K, 3], got {short(other)}", file=file, where="kpt_shape", remedy="correct it"
            )


def _keypoint_names(
    content: dict[str, Any], categories: Categories, count: int, file: Path
) -> tuple[tuple[str, KeypointNames], ...]:
    """Return the keypoint names of each category (only those in ``kpt_names``, if it is given by label)."""
    names = content.get("kpt_names") or [str(index) for index in range(count)]
    by_label = names if isinstance(names, dict) else dict.fromkeys(range(len(categories)), names)
    order = content.get("flip_idx") or list(range(count))
    if not isinstance(order, list) or not _swaps_pairs(order, count):
        problem = f"expected the indices 0..{count - 1}, with pairs swapped, got {short(order)}"
        raise DataError(
            problem, file=file, where="flip_idx", remedy="give for each keypoint the index of its mirror image"
        )
    pairs = tuple((i, j) for i, j in enumerate(order) if i < j)
    schemes = []
    for label, names in by_label.items():
        if not isinstance(label, int) or not 0 <= label < len(categories):
            problem = f"expected labels 0..{len(categories) - 1}, got {short(label)}"
            raise DataError(problem, file=file, where="kpt_names", remedy="correct the label")
        if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str | int) for name in names):
            problem = f"expected {count} names, got {short(names)}"
            raise DataError(problem, file=file, where="kpt_names", remedy="name each keypoint")
        schemes.append((categories[label], KeypointNames(tuple(str(name) for name in names), flip_pairs=pairs)))
    return tuple(schemes)


def _swaps_pairs(order: list[Any], count: int) -> bool:
    if not all(isinstance(index, int) for index in order) or sorted(order) != list(range(count)):
        return False
    return all(order[order[i]] == i for i in range(count))
