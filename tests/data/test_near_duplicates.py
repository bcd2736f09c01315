"""Real photographs that stand in two sets at different sizes, and copies made here."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otus.data.checks.near_duplicates import SIDE, find_near_duplicates
from otus.data.image_files import list_images
from otus.data.images import read_thumbnail


def duplicates_of(paths: list[Path]) -> set[tuple[str, str]]:
    thumbnails = np.stack([read_thumbnail(path, side=SIDE)[0] for path in paths])
    pairs, correlations = find_near_duplicates(thumbnails)
    assert (correlations > 0.99).all()
    assert (pairs[:, 0] < pairs[:, 1]).all()
    return {(str(paths[i]), str(paths[j])) for i, j in pairs}


def test_every_listed_pair_of_the_two_voc_years_and_no_other(shared_data):
    listed = set()
    for line in (shared_data / "duplicates.tsv").read_text().splitlines()[1:]:
        names = sorted(line.split())
        if all(name.startswith("voc") for name in names):
            listed.add(tuple(str(shared_data / name) for name in names))
    assert len(listed) > 100
    among_listed = sorted({Path(name) for pair in listed for name in pair})
    others = list_images(shared_data / "voc2007" / "JPEGImages")[:1000]
    paths = sorted({*among_listed, *others})
    assert duplicates_of(paths) == listed


def test_resized_recompressed_and_brightened_copies(tmp_path, shared_data):
    photographs = list_images(shared_data / "demo" / "photos")
    expected = set()
    paths = list(photographs)
    for number, path in enumerate(photographs):
        image = Image.open(path).convert("RGB")
        copies = {
            "small.jpg": image.resize((image.width // 3, image.height // 3)),
            "poor.jpg": image,
            "bright.png": image.point(lambda value: min(255, int(value * 1.05))),
        }
        for name, copy in copies.items():
            target = tmp_path / f"{number}_{name}"
            copy.save(target, quality=15 if name == "poor.jpg" else 90)
            paths.append(target)
        expected |= {(str(path), str(tmp_path / f"{number}_{name}")) for name in copies}
    assert duplicates_of(paths) == expected


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(count):
    pairs, correlations = find_near_duplicates(np.zeros((count, SIDE, SIDE), np.uint8))
    assert pairs.shape == (0, 2)
    assert correlations.shape == (0,)


def test_equal_thumbnails_are_paired_with_the_first():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, SIDE, SIDE), dtype=np.uint8)
    pairs, _ = find_near_duplicates(np.stack([a, b, a, a, b]))
    assert sorted(pairs.tolist()) == [[0, 2], [0, 3], [1, 4]]


def test_an_image_is_paired_once_with_each_group():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 250, (SIDE, SIDE)) + rng.integers(0, 3, (300, SIDE, SIDE))
    groups = np.arange(300) % 3
    pairs, correlations = find_near_duplicates(frames.astype(np.uint8), groups)
    assert sorted(pairs.tolist()) == [[i, j] for i in range(3) for j in range(i + 1, 300)]
    assert (correlations > 0.994).all()
    assert len(find_near_duplicates(frames.astype(np.uint8))[0]) == 299


def test_noise_and_even_colours_are_not_alike():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (600, SIDE, SIDE), dtype=np.uint8)
    even = np.arange(200, dtype=np.uint8)[:, None, None] + np.zeros((1, SIDE, SIDE), np.uint8)
    pairs, _ = find_near_duplicates(np.concatenate([noise, even]))
    assert len(pairs) == 0


def test_a_thumbnail_is_of_the_whole_upright_image(tmp_path):
    y, x = np.mgrid[:300, :400]
    pixels = np.stack([x * 255 // 400, y * 255 // 300, x * 0], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95, exif=exif)
    thumbnail, size_hw = read_thumbnail(tmp_path / "a.jpg", side=16)
    expected = np.rot90(np.asarray(Image.fromarray(pixels).convert("L"), dtype=float), -1)
    blocks = np.stack(
        [np.stack([c.mean() for c in np.array_split(r, 16, axis=1)]) for r in np.array_split(expected, 16)]
    )
    assert size_hw == (400, 300)
    assert np.abs(thumbnail - blocks).max() < 3
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    (tmp_path / "b.png").write_bytes(buffer.getvalue())
    assert np.abs(np.rot90(read_thumbnail(tmp_path / "b.png", side=16)[0], -1) - blocks).max() < 3
