"""Images kept aside."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from otus.data.dataset import Dataset, Images, PanopticFiles, SemanticFiles
from otus.data.splitting import fingerprint, shared_images, train_val_split
from otus.errors import UsageError
from otus.structures import Categories, Objects
from otus.structures.maps import Segment


def dataset(folder: Path, contents: dict[str, str]) -> Dataset:
    for name, content in contents.items():
        (folder / name).write_text(content)
    count = len(contents)
    return Dataset(
        source=folder,
        format="made",
        images=Images(folder, tuple(contents), [[4, 4]] * count, tuple(range(count))),
        categories=Categories(("cat",)),
        objects=Objects.build(image_index=range(count), labels=[0] * count, boxes_xyxy=[[0, 0, 1, 1]] * count),
    )


def test_the_parts_are_the_whole_and_share_nothing(tmp_path: Path) -> None:
    whole = dataset(tmp_path, {f"{i}.jpg": str(i) for i in range(20)})
    rest, aside = train_val_split(whole, 0.25)
    assert (len(rest), len(aside)) == (15, 5)
    assert {*rest.images.files, *aside.images.files} == set(whole.images.files)
    backwards = train_val_split(whole.select(np.arange(len(whole))[::-1]), 0.25)[1]
    assert sorted(backwards.images.files) == sorted(aside.images.files)
    assert set(train_val_split(whole, 0.5)[1].images.files) >= set(aside.images.files)
    assert len(train_val_split(whole, 0.001)[1]) == 1
    assert len(train_val_split(whole, 0.999)[0]) == 1


def test_a_share_that_cannot_be(tmp_path: Path) -> None:
    one = dataset(tmp_path, {"a.jpg": "a"})
    for data, share in ((one, 0.5), (one, 0.0), (one, 2.0)):
        with pytest.raises(UsageError):
            train_val_split(data, share)


def test_the_same_image_is_found_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = dataset(tmp_path / "a", {"x.jpg": "one", "y.jpg": "two"})
    second = dataset(tmp_path / "b", {"z.jpg": "two", "w.jpg": "ten", "x.jpg": "three"})
    assert shared_images(first, second) == ["z.jpg"]
    assert shared_images(first, first) == ["x.jpg", "y.jpg"]


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = dataset(tmp_path / "a", {f"{i}.bmp": f"{i:04}" for i in range(9)} | {"long.bmp": "longer"})
    second = dataset(tmp_path / "b", {f"{i}.bmp": f"{i:04}" for i in range(8, 12)})
    read: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or read_bytes(path))
    assert shared_images(first, second) == ["8.bmp"]
    assert len(read) == len(set(read)) == 9 + 4


def test_names_that_are_not_utf8_have_a_fingerprint(tmp_path: Path) -> None:
    latin_1 = dataset(tmp_path, {"caf\udce9.png": "a"})
    renamed = replace(latin_1, images=replace(latin_1.images, files=("caf\udce8.png",)))
    assert fingerprint(latin_1, sizes=False) != fingerprint(renamed, sizes=False)


def test_the_fingerprint_changes_with_labels_and_files(tmp_path: Path) -> None:
    one = dataset(tmp_path, {"a.jpg": "a", "b.jpg": "b"})
    before = fingerprint(one)
    assert one.objects is not None
    assert fingerprint(one) == before
    assert fingerprint(replace(one, objects=replace(one.objects, boxes_xyxy=one.objects.boxes_xyxy + 1))) != before
    assert fingerprint(replace(one, categories=Categories(("dog",)))) != before
    (tmp_path / "a.jpg").write_text("longer")
    assert fingerprint(one) != before


def test_the_fingerprint_changes_with_label_maps_and_image_labels(tmp_path: Path) -> None:
    images = dataset(tmp_path, {"a.jpg": "a"})
    map_file = tmp_path / "a.png"
    map_file.write_bytes(b"first")
    categories = Categories(("road", "sky"))
    semantic = replace(images, semantic=SemanticFiles((map_file,), categories, np.arange(256)))
    panoptic = replace(images, panoptic=PanopticFiles((map_file,), ((Segment(1, 0, False),),), categories))
    labelled = replace(images, image_labels=np.array([0]))
    before = [fingerprint(data) for data in (images, semantic, panoptic, labelled)]
    assert len(set(before)) == 4
    assert fingerprint(replace(semantic, semantic=replace(semantic.semantic, lookup=np.arange(256)[::-1]))) != before[1]
    assert fingerprint(replace(panoptic, panoptic=replace(panoptic.panoptic, segments=((),)))) != before[2]
    assert fingerprint(replace(labelled, image_labels=np.array([1]))) != before[3]
    map_file.write_bytes(b"other")  # of the same size
    assert [fingerprint(semantic) == before[1], fingerprint(panoptic) == before[2]] == [False, False]
