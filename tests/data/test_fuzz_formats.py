"""Files of every format with something broken in them: readers may refuse, but only by an OtusError, soon, in little memory.

Each case is drawn from (seed, number), so a failure is repeated by its number alone. A case is read twice, strictly and
collecting, and what was collected is then used: images decoded, masks made, the data set examined.
"""

import contextlib
import json
import re
import resource
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from otus.data.checks.doctor import check_datasets, check_path
from otus.data.conversion import WRITERS, convert
from otus.data.dataset import Dataset, Images, PanopticFiles
from otus.data.formats import (
    classification_folders,
    coco,
    coco_panoptic,
    coco_results,
    cvat,
    dota,
    index_png,
    kitti,
    label_studio,
    labelme,
    sa1b,
    voc,
    yolo,
)
from otus.data.image_writing import write_image, write_label_image
from otus.data.open import find_layouts
from otus.errors import DataError, OtusError
from otus.structures import Categories, KeypointNames, Masks, Objects, Segment, Segmentations

H, W = 24, 32
SECONDS_A_CASE = 5.0
SPARE_BYTES = 1 << 30
LEAST_CASES = 30
IMAGE_SUFFIXES = (".png", ".jpg")
RNG = np.random.Generator

NASTY = [
    b"NaN", b"Infinity", b"-Infinity", b"nan", b"inf", b"-1", b"0", b"-0.0", b"0.5", b"1e308", b"-1e308", b"1e400",
    b"1e-320", b"1000000000", b"1000000000000000000", b"2147483648", b"4294967296", b"9223372036854775807",
    b"9223372036854775808", b"-9223372036854775809", b"1" * 400,
    b'"1"', b'""', b'"x"', b"null", b"true", b"[]", b"{}", b"[[]]", b"[1]", b"[1,2,3]", b"[0,0,0,0]", b"[null]",
    b'{"size":[24,32],"counts":"0"}', b'{"size":[9,9],"counts":[81]}', b'{"size":[24,32],"counts":[-5,773]}',
    b'{"size":[1000000000,1000000000],"counts":[]}', b"[[1,2,3,4]]", b"[[1,2,3,4,5]]", b"[[0,0,1e9,0,1e9,1e9]]",
    b'"../../../../etc/passwd"', b'"/etc/passwd"', b'"\\u0000"', b'"\\ud800"', b"\xff\xfe", b"\0", b"\xc3\x28",
    "é".encode(), b"[" * 5000, b"[" * 2000 + b"]" * 2000, b'{"a":' * 2000, b"<a>" * 5000, b"&x;", b"<!DOCTYPE a>",
    b"]]>", b"- ", b"&a *a", b"!!python/object:os.system ",
]  # fmt: skip


def labelled(folder: Path, *, keypoints: bool = True) -> Dataset:
    """Three small images with polygons of two parts, run lengths, a crowd and keypoints, in ``folder / source``."""
    rng = np.random.default_rng(0)
    root = folder.parent / "source"
    names = tuple(f"{i}.png" for i in range(3))
    for name in names:
        write_image(root / name, rng.integers(0, 256, (H, W, 3), dtype=np.uint8))
    mask = np.zeros((1, H, W), bool)
    mask[0, 5:15, 6:20] = True
    mask[0, 8:10, 9:12] = False
    run_lengths = Masks.from_dense(mask).to_rle().rle()[0]["counts"]
    square, far = np.array([[2.0, 2], [10, 2], [10, 9], [2, 9]]), np.array([[20.0, 12], [30, 12], [25, 22]])
    boxes = np.array([[2.0, 2, 30, 22], [6, 5, 20, 15], [6, 5, 20, 15], [2, 2, 10, 9]])
    person = KeypointNames(("left_eye", "right_eye", "nose"), skeleton=((0, 2), (1, 2)))
    places = np.tile(np.array([[4.0, 4, 2], [8, 4, 1], [0, 0, 0]]), (4, 1, 1))
    return Dataset(
        source=root,
        format="made-up",
        images=Images(root, names, np.full((3, 2), (H, W)), (1, 2, 3)),
        categories=Categories(("person", "dog"), ids=(1, 18), keypoints=(("person", person),) if keypoints else ()),
        objects=Objects.build(
            image_index=[0, 0, 1, 2],
            labels=[0, 1, 1, 0],
            boxes_xyxy=boxes,
            ids=[5, 6, 7, 8],
            is_crowd=[False, False, True, False],
            segmentations=Segmentations.build([[square, far], run_lengths, run_lengths, [square]]),
            keypoints=places * (np.array([1, 0, 0, 1])[:, None, None]) if keypoints else None,
        ),
    )


def made_coco(folder: Path) -> None:
    coco.write(labelled(folder), folder)


def made_panoptic(folder: Path) -> None:
    dataset = labelled(folder)
    file = folder.parent / "source" / "map" / "0.png"
    ids = np.zeros((H, W), np.uint8)
    ids[2:9, 2:10], ids[12:20, 12:30] = 7, 9
    write_image(file, np.stack([ids, ids * 0, ids * 0], axis=2))
    maps = PanopticFiles((file, None, None), ((Segment(7, 0), Segment(9, 1)), (), ()), dataset.categories)
    coco_panoptic.write(replace(dataset, objects=None, panoptic=maps), folder)


def made_voc(folder: Path) -> None:
    voc.write(labelled(folder, keypoints=False), folder)


def made_yolo(folder: Path) -> None:
    yolo.write(labelled(folder, keypoints=False), folder)


def made_yolo_keypoints(folder: Path) -> None:
    yolo.write(labelled(folder), folder)


def made_labelme(folder: Path) -> None:
    labelme.write(labelled(folder), folder)


def made_sa1b(folder: Path) -> None:
    sa1b.write(labelled(folder, keypoints=False), folder)


def made_dota(folder: Path) -> None:
    noise = np.random.default_rng(0)
    for i in range(2):
        write_image(folder / "images" / f"{i}.png", noise.integers(0, 256, (H, W, 3), dtype=np.uint8))
        text = "imagesource:GoogleEarth\ngsd:0.14\n2 2 10 3 9 9 1 8 plane 0\n20 12 30 12 30 20 20 20 ship 1\n"
        (folder / "labelTxt").mkdir(exist_ok=True)
        (folder / "labelTxt" / f"{i}.txt").write_text(text)


def made_kitti(folder: Path) -> None:
    noise = np.random.default_rng(0)
    for i in range(2):
        write_image(folder / "training" / "image_2" / f"{i}.png", noise.integers(0, 256, (H, W, 3), dtype=np.uint8))
        labels = folder / "training" / "label_2"
        labels.mkdir(exist_ok=True)
        (labels / f"{i}.txt").write_text(
            "Car 0.00 0 -1.58 5.0 5.0 20.0 15.0 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"
            "DontCare -1 -1 -10 2.0 2.0 9.0 9.0 -1 -1 -1 -1000 -1000 -1000 -10\n"
        )


def made_cvat(folder: Path) -> None:
    write_image(folder / "images" / "a.png", np.zeros((H, W, 3), dtype=np.uint8))
    (folder / "annotations.xml").write_text(
        "<annotations><meta><task><labels><label><name>dog</name></label></labels></task></meta>"
        f'<image id="0" name="a.png" width="{W}" height="{H}"><box label="dog" xtl="1" ytl="2" xbr="9.5" ybr="8"/>'
        '<box label="dog" xtl="1" ytl="2" xbr="9" ybr="8" rotation="30"/><polygon label="cat" points="1,1;9,1;9,9"/>'
        '<mask label="dog" rle="1,3,2" left="2" top="2" width="3" height="2"/><points label="dog" points="1,1"/></image>'
        "</annotations>"
    )


def made_label_studio(folder: Path) -> None:
    write_image(folder / "images" / "a.png", np.zeros((H, W, 3), dtype=np.uint8))
    values = [
        ("rectanglelabels", {"x": 10, "y": 20, "width": 30.5, "height": 40, "rotation": 0}),
        ("rectanglelabels", {"x": 10, "y": 20, "width": 30.5, "height": 40, "rotation": 30}),
        ("polygonlabels", {"points": [[10, 10], [50, 10], [50, 60]]}),
        ("ellipselabels", {"x": 40, "y": 40, "radiusX": 10, "radiusY": 20}),
        ("brushlabels", {"format": "rle", "rle": [0, 1]}),
    ]
    results = [
        {"type": kind, "original_width": W, "original_height": H, "value": {**value, kind: ["dog"]}}
        for kind, value in values
    ]
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/1/a.png"}, "annotations": [{"result": results}], "predictions": []}
    ]
    (folder / "tasks.json").write_text(json.dumps(tasks))


def made_index_png(folder: Path) -> None:
    noise = np.random.default_rng(0)
    for i in range(2):
        write_image(folder / "train" / f"{i}.png", noise.integers(0, 256, (H, W, 3), dtype=np.uint8))
        write_label_image(folder / "trainannot" / f"{i}.png", noise.integers(0, 3, (H, W)))
    (folder / "train.txt").write_text("train/0.png trainannot/0.png\ntrain/1.png trainannot/1.png\n")
    (folder / "classes.txt").write_text("0 sky\n1 road\n2 void\n")


def made_folders(folder: Path) -> None:
    noise = np.random.default_rng(0)
    for name in ("train/cat/a.png", "train/dog/b.png", "val/cat/c.png"):
        write_image(folder / name, noise.integers(0, 256, (H, W, 3), dtype=np.uint8))


FORMATS: list[tuple[ModuleType, Callable[[Path], None]]] = [
    (coco, made_coco),
    (coco_panoptic, made_panoptic),
    (voc, made_voc),
    (yolo, made_yolo),
    (yolo, made_yolo_keypoints),
    (labelme, made_labelme),
    (sa1b, made_sa1b),
    (dota, made_dota),
    (kitti, made_kitti),
    (cvat, made_cvat),
    (label_studio, made_label_studio),
    (index_png, made_index_png),
    (classification_folders, made_folders),
]


def pick(rng: RNG, values: list) -> object:
    return values[int(rng.integers(len(values)))]


def span(rng: RNG, content: bytes) -> tuple[int, int]:
    start = int(rng.integers(0, len(content) + 1))
    return start, min(len(content), start + int(rng.integers(1, 2 + len(content) // 4)))


def flip_bytes(rng: RNG, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 6)) if content else 0):
        changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
    return bytes(changed)


def delete_span(rng: RNG, content: bytes) -> bytes:
    start, end = span(rng, content)
    return content[:start] + content[end:]


def repeat_span(rng: RNG, content: bytes) -> bytes:
    start, end = span(rng, content)
    return content[:end] + content[start:end] * int(rng.integers(1, 4)) + content[end:]


def insert(rng: RNG, content: bytes) -> bytes:
    start, _ = span(rng, content)
    return content[:start] + pick(rng, NASTY) + content[start:]


def truncate(rng: RNG, content: bytes) -> bytes:
    return content[: int(rng.integers(0, len(content) + 1))]


def encode_otherwise(rng: RNG, content: bytes) -> bytes:
    encoding = pick(rng, ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp500"])
    return content.decode("latin-1").encode(encoding, errors="replace")


def replace_number(rng: RNG, content: bytes) -> bytes:
    return replace_match(rng, content, rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def replace_word(rng: RNG, content: bytes) -> bytes:
    return replace_match(rng, content, rb'"[^"]*"|[A-Za-z_]+')


def replace_match(rng: RNG, content: bytes, pattern: bytes) -> bytes:
    matches = list(re.finditer(pattern, content))
    if not matches:
        return content
    match = pick(rng, matches)
    return content[: match.start()] + pick(rng, NASTY) + content[match.end() :]


def change_lines(rng: RNG, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    here = int(rng.integers(len(lines)))
    lines[here : here + 1] = pick(rng, [[], [lines[here]] * 3, [b"\n"], [lines[here].replace(b" ", b"\t"), b" \r"]])
    return b"".join(lines)


def change_element(rng: RNG, content: bytes) -> bytes:
    """An XML element deleted, repeated, emptied or renamed."""
    matches = list(re.finditer(rb"<(\w+)>(.*?)</\1>", content, flags=re.DOTALL))
    if not matches:
        return content
    match = pick(rng, matches)
    inner = match[2]
    instead = pick(
        rng,
        [
            b"",
            match[0] * 2,
            b"<%s/>" % match[1],
            b"<x>%s</x>" % inner,
            b"<%s>%s</%s>" % (match[1], pick(rng, NASTY), match[1]),
        ],
    )
    return content[: match.start()] + instead + content[match.end() :]


def change_node(rng: RNG, content: bytes) -> bytes:
    """A value in a JSON document replaced, deleted, repeated or moved."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return content
    places = list(nodes(document))
    if not places:
        return content
    parent, key = pick(rng, places)
    action = int(rng.integers(5))
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif action == 2:
        other, other_key = pick(rng, places)
        parent[key] = json.loads(json.dumps(other[other_key]))
    else:
        parent[key] = "THE NODE"
    return json.dumps(document).encode().replace(b'"THE NODE"', pick(rng, NASTY))


def nodes(document: object) -> Iterator[tuple[object, object]]:
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield document, key
        yield from nodes(value)


BLUNT = [flip_bytes, delete_span, repeat_span, insert, truncate, encode_otherwise]
FINE = [replace_number, replace_word, change_lines, change_element, change_node]


def mutate(rng: RNG, content: bytes) -> bytes:
    for _ in range(int(rng.integers(1, 4))):
        content = pick(rng, FINE if rng.random() < 0.7 else BLUNT)(rng, content)
    return content


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """An array of an image that a file claims to be 1e9 pixels wide does not fit."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def use(dataset: Dataset) -> None:
    for index in range(min(len(dataset), 5)):
        with contextlib.suppress(OtusError):
            dataset[index]


def read(module: ModuleType, folder: Path) -> None:
    with contextlib.suppress(OtusError):
        for layout in module.find(folder):
            with contextlib.suppress(OtusError):
                use(module.read(layout))
            problems: list[DataError] = []
            with contextlib.suppress(OtusError):
                dataset = module.read(layout, report=problems.append)
                use(dataset)
                check_datasets([dataset], problems=problems)


def hurt(folder: Path, work: Callable[[], None], *, seed: int, seconds: float) -> None:
    """Break files of a folder, one or two at a time, and do the work; fail with every kind of crash that was met."""
    work()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = {path: path.read_bytes() for path in files}
    labels = [path for path in files if path.suffix not in IMAGE_SUFFIXES] or files
    crashes: dict[str, str] = {}
    end = time.perf_counter() + seconds
    for case in count():
        if case >= LEAST_CASES and time.perf_counter() > end:
            break
        rng = np.random.default_rng([seed, case])
        broken = {pick(rng, labels if rng.random() < 0.85 else files) for _ in range(int(rng.integers(1, 3)))}
        for path in sorted(broken):
            if rng.random() < 0.02:
                path.unlink()
            else:
                path.write_bytes(mutate(rng, whole[path]))
        start = time.perf_counter()
        try:
            with little_memory():
                work()
        except Exception as error:  # whatever it is, it is what we look for
            frame = traceback.extract_tb(error.__traceback__)[-1]
            crashes.setdefault(
                f"{type(error).__name__} in {frame.filename}:{frame.lineno}", f"case {case}: {traceback.format_exc()}"
            )
        if time.perf_counter() - start > SECONDS_A_CASE:
            crashes.setdefault("slow", f"case {case}: {time.perf_counter() - start:.1f} s")
        for path in broken:
            path.write_bytes(whole[path])
    assert not crashes, "\n".join([*crashes.values(), *crashes])


def without_objects(folder: Path) -> None:
    """Take all objects out of the label files of a set, of whatever format."""
    for file in sorted(folder.rglob("*")):
        if file.parent.name == "SegmentationObject":
            file.unlink()
        elif file.suffix == ".xml":
            file.write_bytes(
                re.sub(rb"<object>.*?</object>|<(box|mask|polygon) .*?/>", b"", file.read_bytes(), flags=re.DOTALL)
            )
        elif file.suffix == ".json":
            document = json.loads(file.read_bytes())
            for record in document if isinstance(document, list) else [document]:
                record.update({name: [] for name in ("annotations", "shapes") if name in record})
            file.write_text(json.dumps(document))
        elif file.suffix == ".txt" and any(part.startswith("label") for part in file.relative_to(folder).parent.parts):
            lines = file.read_text().splitlines(keepends=True)
            file.write_text("".join(line for line in lines if line.startswith(("imagesource:", "gsd:"))))


def content(module: ModuleType, folder: Path) -> list[tuple]:
    """What is read of a set, to be compared with what is read of it later."""
    assert {layout.format for layout in find_layouts(folder)} == {module.__name__.rpartition(".")[2]}
    read = []
    for layout in module.find(folder):
        dataset = module.read(layout)
        objects = (
            [] if dataset.objects is None else [dataset.objects.boxes_xyxy.tolist(), dataset.objects.labels.tolist()]
        )
        read.append((layout.split, dataset.images.files, dataset.categories, objects))
        use(dataset)
    return read


@pytest.mark.parametrize(("module", "make"), FORMATS, ids=[make.__name__.removeprefix("made_") for _, make in FORMATS])
def test_files_that_systems_leave_are_no_data(tmp_path, module, make):
    folder = tmp_path / "set"
    make(folder)
    (folder / "empty" / "inner").mkdir(parents=True)
    before = content(module, folder)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        resources = file.with_name(f"._{file.name}")
        resources.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
        for kept in (".ipynb_checkpoints", "__MACOSX"):
            copy = file.parent / kept / f"{file.stem}-checkpoint{file.suffix}"
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    for one in sorted(path for path in (folder, *folder.rglob("*")) if path.is_dir()):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (one / name).write_bytes(b"\0\1Bud1")
    assert content(module, folder) == before


TEXTS = (".txt", ".json", ".xml", ".yaml")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(("module", "make"), FORMATS, ids=[make.__name__.removeprefix("made_") for _, make in FORMATS])
def test_label_files_in_other_encodings_of_unicode(tmp_path, module, make, encoding):
    folder = tmp_path / "set"
    make(folder)
    before = content(module, folder)
    for file in folder.rglob("*"):
        if file.suffix in TEXTS:
            file.write_bytes(file.read_text().encode(encoding))
    assert content(module, folder) == before


@pytest.mark.parametrize(
    ("module", "make"),
    [(module, make) for module, make in FORMATS if module not in (sa1b, classification_folders)],
    ids=[make.__name__.removeprefix("made_") for m, make in FORMATS if m not in (sa1b, classification_folders)],
)
def test_label_files_in_no_encoding_of_unicode_are_named(tmp_path, module, make):
    folder = tmp_path / "set"
    make(folder)
    for file in folder.rglob("*"):
        if file.suffix in TEXTS:
            text = re.sub("dog|ship|Car|road", "\N{CJK UNIFIED IDEOGRAPH-72D7}", file.read_text())
            file.write_bytes(text.encode("gbk"))
    with pytest.raises(DataError, match=r"\.(txt|json|xml|yaml).*UTF-8.*save .* as UTF-8") as caught:
        content(module, folder)
    assert caught.value.kind == "not_utf8"


@pytest.mark.parametrize(("module", "make"), FORMATS, ids=[make.__name__.removeprefix("made_") for _, make in FORMATS])
def test_the_first_files_of_a_folder_are_foreign(tmp_path, module, make):
    folder = tmp_path / "set"
    make(folder)
    (before,) = {len(module.read(layout)) for layout in module.find(folder)[:1]}
    notes = {".xml": "<html/>", ".json": '{"author": "me"}', ".txt": "notes of mine", ".yaml": "author: me"}
    for file in [file for file in folder.rglob("*") if file.suffix in TEXTS]:
        for number in range(3):
            file.with_name(f"-{number}{file.suffix}").write_text(notes[file.suffix])
    layout = module.find(folder)[0]
    assert {one.format for one in find_layouts(folder)} == {layout.format}
    assert len(module.read(layout, report=lambda problem: None)) == before


MAPS_ALONE = (coco_panoptic, index_png, classification_folders)


@pytest.mark.parametrize(("module", "make"), FORMATS, ids=[make.__name__.removeprefix("made_") for _, make in FORMATS])
def test_no_objects_anywhere(tmp_path, module, make):
    folder = tmp_path / "set"
    make(folder)
    without_objects(folder)
    layouts = module.find(folder)
    datasets = [module.read(layout) for layout in layouts]
    assert layouts
    assert not any(len(one.objects) for one in datasets if one.objects is not None)
    check_datasets(datasets)
    for target in WRITERS:
        if module not in MAPS_ALONE and target != "coco_panoptic":
            done = convert(folder, tmp_path / target, to=target)
            assert sum(map(len, done.datasets)) == sum(map(len, datasets))
            assert not done.problems
            check_path(tmp_path / target)


# Fourteen sorts of files: some 20 seconds with the rest of the suite, a minute in the slow tier.
MODERATE = pytest.param(1, 1.0, id="seconds")
LONG = pytest.param(2, 5.0, id="minute", marks=pytest.mark.slow)


@pytest.mark.parametrize(("seed", "seconds"), [MODERATE, LONG])
@pytest.mark.parametrize(("module", "make"), FORMATS, ids=[make.__name__.removeprefix("made_") for _, make in FORMATS])
def test_broken_files_of_every_format(tmp_path, module, make, seed, seconds):
    folder = tmp_path / "set"
    make(folder)
    assert [module.read(layout) for layout in module.find(folder)], "the whole files must be recognised"
    hurt(folder, lambda: read(module, folder), seed=seed, seconds=seconds)


@pytest.mark.parametrize(("seed", "seconds"), [MODERATE, LONG])
def test_broken_predictions(tmp_path, seed, seconds):
    dataset = labelled(tmp_path / "set")
    assert dataset.objects is not None
    predictions = replace(dataset.objects, scores=np.linspace(0.1, 0.9, len(dataset.objects)))
    file = tmp_path / "set" / "results.json"
    file.parent.mkdir()
    coco_results.write_results(dataset, predictions, file)

    def work() -> None:
        for report in (None, lambda problem: None):
            with contextlib.suppress(OtusError):
                options = {} if report is None else {"report": report}
                use(replace(dataset, objects=coco_results.read_results(file, dataset, **options)))

    hurt(file.parent, work, seed=seed, seconds=seconds)
