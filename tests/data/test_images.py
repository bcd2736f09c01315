"""Every image is made here; the real ones serve for the sizes of a whole folder."""

import os
import struct
import time
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from otus.data.formats.paths import list_files
from otus.data.image_files import list_images
from otus.data.image_writing import write_image, write_label_image
from otus.data.images import (
    image_notes,
    image_size_hw,
    read_image,
    read_label_image,
    read_reduced_image,
)
from otus.errors import DataError, ImageError, ShapeError

H, W = 20, 32


@pytest.fixture
def rgb() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (H, W, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def raw_png(width: int, height: int, *, depth: int, colour: int, rows: list[bytes], extra: bytes = b"") -> bytes:
    """A PNG by hand, for the depths that Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_orientation_is_applied_to_pixels_and_size(tmp_path, rgb, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", rgb, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    # EXIF 2.3: what the 0th row and 0th column are when shown.
    shown = {
        1: rgb, 2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1],
        5: rgb.transpose(1, 0, 2), 6: np.rot90(rgb, -1), 7: rgb[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(rgb),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(read_image(path), shown)
    np.testing.assert_array_equal(read_image(path.read_bytes()), shown)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read_image(opened), shown)
    assert image_size_hw(path) == shown.shape[:2]


def test_orientation_of_a_jpeg(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", rgb, exif=exif)
    assert image_size_hw(path) == (W, H) == read_image(path).shape[:2]


def test_broken_exif_is_no_orientation_and_no_warning(tmp_path, rgb):
    path = save(tmp_path / "a.jpg", rgb, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" * 3)
    assert read_image(path).shape == rgb.shape


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes_are_shown_as_pillow_shows_them(tmp_path, rgb, mode):
    image = Image.fromarray(rgb).convert(mode)
    path = save(tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "LAB") else "a.png"), image if mode != "HSV" else rgb)
    np.testing.assert_array_equal(read_image(path), np.asarray(Image.open(path).convert("RGB")))


def test_cmyk_jpeg_of_adobe_is_not_a_negative(tmp_path):
    red = Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
    path = save(tmp_path / "a.jpg", red, quality=100)
    assert b"Adobe" in path.read_bytes()[:200]
    assert np.abs(read_image(path).astype(int) - (200, 30, 30)).max() <= 4


def test_transparency_is_laid_on_white(tmp_path, rgb):
    alpha = np.zeros((H, W, 1), dtype=np.uint8)
    alpha[:, : W // 2] = 255
    alpha[0] = 51
    path = save(tmp_path / "a.png", np.concatenate([rgb, alpha], axis=2))
    share = alpha / 255.0
    expected = rgb * share + 255 * (1 - share)
    assert np.abs(read_image(path) - expected).max() <= 1
    assert np.abs(read_image(np.concatenate([rgb, alpha], axis=2)) - expected).max() <= 1


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\x80"])
def test_transparent_palette(tmp_path, transparency):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 0, 0, 0])
    path = save(tmp_path / "a.png", image, transparency=transparency)
    third = 0 if transparency == 1 else 127
    np.testing.assert_array_equal(read_image(path)[0], [[10, 20, 30], [255] * 3, [third] * 3])
    np.testing.assert_array_equal(read_label_image(path), [[0, 1, 2]])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(8, 32)
    pixels = read_image(save(tmp_path / f"a.{suffix}", ramp))
    np.testing.assert_array_equal(pixels[..., 0], np.round(ramp / 257.0))
    assert (pixels == pixels[..., :1]).all()


def test_16_bit_rgb_is_scaled(tmp_path):
    path = tmp_path / "a.png"
    values = np.array([[[0, 257 * 100, 65535]]], dtype=">u2")
    path.write_bytes(raw_png(1, 1, depth=16, colour=2, rows=[values.tobytes()]))
    np.testing.assert_array_equal(read_image(path), [[[0, 100, 255]]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float32([[0, 0.5, 1, np.nan]]), [0, 128, 255, 0]),
        (np.float32([[0, 17, 255, np.inf]]), [0, 17, 255, 0]),
        (np.float32([[-10, 0, 10, 10]]), [0, 128, 255, 255]),
        (np.int32([[0, 257, 65535, 0]]), [0, 1, 255, 0]),
        (np.int32([[-100000, 0, 100000, 0]]), [0, 128, 255, 128]),
        (np.float32([[3000, 3000, 3000, 3000]]), [0, 0, 0, 0]),
    ],
)
def test_float_and_32_bit(tmp_path, values, expected):
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.tif", values))[0, :, 0], expected)


def pages(path, modes=("L", "L", "L"), **options):
    images = [Image.new(mode, (8, 6), 9 * number) for number, mode in enumerate(modes, start=1)]
    images[0].save(path, save_all=True, append_images=images[1:], **options)


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png"])
def test_further_pages_are_said(tmp_path, name):
    pages(tmp_path / name)
    assert "3 pages" in image_notes(tmp_path / name)["further_pages"]
    assert "3 pages" in image_notes((tmp_path / name).read_bytes())["further_pages"]
    read_image(tmp_path / name)


def test_the_preview_in_a_phones_photograph_is_no_page(tmp_path):
    pages(tmp_path / "a.jpg", ("RGB", "RGB"), format="MPO")
    assert image_notes(tmp_path / "a.jpg") == {}


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize(("brightest", "dark"), [(0, False), (3000, True), (4095, True), (4096, False), (60000, False)])
def test_twelve_bits_in_sixteen_are_said(tmp_path, name, brightest, dark):
    values = np.linspace(0, brightest, 48).astype(np.uint16).reshape(6, 8)
    Image.fromarray(values).save(tmp_path / name)
    assert ("dark_image" in image_notes(tmp_path / name)) == dark


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert (read_image(tmp_path / "a.gif") == (255, 0, 0)).all()


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
def test_arrays(shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(read_image(array), np.broadcast_to(array.reshape(4, 5, -1), (4, 5, 3)))
    for wrong in (array.astype(np.float32), np.zeros((0, 5, 3), np.uint8), np.zeros((5,), np.uint8)):
        with pytest.raises(ShapeError, match="expected uint8"):
            read_image(wrong)


def broken_files(folder: Path, rgb: np.ndarray) -> dict[str, Path]:
    whole_jpeg = save(folder / "whole.jpg", rgb, quality=95).read_bytes()
    whole_png = save(folder / "whole.png", rgb).read_bytes()
    contents = {
        "empty.jpg": b"",
        "cut.jpg": whole_jpeg[: len(whole_jpeg) * 2 // 3],
        "cut.png": whole_png[: len(whole_png) * 2 // 3],
        "header.png": whole_png[:20],
        "text.jpg": b"not an image at all",
        "page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def test_broken_files_are_named(tmp_path, rgb):
    for name, path in broken_files(tmp_path, rgb).items():
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert name in str(caught.value)
        assert caught.value.kind == "unreadable_image"
        assert caught.value.remedy
    for path, kind in ((tmp_path, "unreadable_image"), (tmp_path / "no.jpg", "missing_image")):
        for read in (read_image, image_size_hw, read_label_image):
            with pytest.raises(ImageError, match=path.name) as caught:
                read(path)
            assert caught.value.kind == kind


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("seed", range(300))
def test_mutated_images_raise_nothing_else(tmp_path, rgb, seed):
    rng = np.random.default_rng(seed)
    suffix = ("jpg", "png", "gif", "tif", "webp", "bmp", "ppm", "avif")[seed % 8]
    content = bytearray(save(tmp_path / f"a.{suffix}", rgb).read_bytes())
    for _ in range(int(rng.integers(1, 12))):
        place = int(rng.integers(0, min(len(content), 400 if rng.random() < 0.7 else len(content))))
        content[place] = int(rng.integers(0, 256))
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(content)
    for read in (read_image, image_size_hw, read_label_image):
        try:
            read(path)
        except ImageError as error:
            assert path.name in str(error)  # noqa: PT017


def test_a_bomb_is_refused_before_it_goes_off(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(raw_png(50_000, 50_000, depth=8, colour=2, rows=[b""]))
    start = time.perf_counter()
    for read in (read_image, read_label_image):
        with pytest.raises(
            ImageError,
            match=r"bomb.png: 50000 x 50000 = 2500 megapixels, the limit is 180 .*--max-pixels .*max_pixels of",
        ):
            read(path)
    assert time.perf_counter() - start < 1
    assert image_size_hw(path) == (50_000, 50_000)


def test_the_limit_is_ours_not_pillows(tmp_path, monkeypatch, rgb):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for name in ("a.png", "a.tif"):
        path = save(tmp_path / name, rgb)
        np.testing.assert_array_equal(read_image(path), rgb)
        assert Image.MAX_IMAGE_PIXELS == 10
        with pytest.raises(ImageError, match="megapixels"):
            read_image(path, max_pixels=H * W - 1)


def test_notes_of_a_huge_image_do_not_decode_it(tmp_path, monkeypatch, rgb):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    paths = [save(tmp_path / name, rgb) for name in ("a.jpg", "a.png", "a.tif")]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("was decoded"))
    assert [image_notes(path) for path in paths] == [{}, {}, {}]


def test_another_size_than_the_labels_say(tmp_path, rgb):
    path = save(tmp_path / "a.png", rgb)
    assert read_image(path, expected_size_hw=(H, W)).shape == (H, W, 3)
    with pytest.raises(ImageError, match="expected 32 x 21 pixels as its labels state, got 32 x 20") as caught:
        read_image(path, expected_size_hw=(21, W))
    assert caught.value.kind == "mis_sized_image"
    with pytest.raises(ImageError, match="EXIF"):
        read_image(path, expected_size_hw=(W, H))


@pytest.mark.parametrize(("depth", "top"), [(1, 1), (2, 3), (4, 15), (8, 255)])
@pytest.mark.parametrize("colour", [0, 3])
def test_index_values_are_untouched_at_every_depth(tmp_path, depth, top, colour):
    values = (np.arange(16) % (top + 1)).astype(np.uint8)
    bits = np.unpackbits(values[:, None], axis=1)[:, 8 - depth :].reshape(-1)
    palette = bytes(range(3)) * (top + 1)
    extra = b""
    if colour == 3:
        extra = struct.pack(">I", len(palette)) + b"PLTE" + palette + struct.pack(">I", zlib.crc32(b"PLTE" + palette))
    path = tmp_path / "a.png"
    path.write_bytes(raw_png(16, 1, depth=depth, colour=colour, rows=[np.packbits(bits).tobytes()], extra=extra))
    np.testing.assert_array_equal(read_label_image(path), [values])


def test_index_images_that_are_none(tmp_path, rgb):
    for name, image, said in (
        ("a.png", rgb, "mode RGB"),
        ("b.png", rgb[..., 0].astype(np.uint16), "mode I;16"),
        ("c.jpg", rgb[..., 0], "JPEG"),
    ):
        with pytest.raises(ImageError, match=said):
            read_label_image(save(tmp_path / name, image))


@pytest.mark.parametrize("palette", [None, np.arange(768, dtype=np.uint8).reshape(256, 3)])
def test_index_images_come_back(tmp_path, rgb, palette):
    path = tmp_path / "new folder" / "a.png"
    write_label_image(path, rgb[..., 0].astype(np.int64), palette=palette)
    np.testing.assert_array_equal(read_label_image(path, expected_size_hw=(H, W)), rgb[..., 0])
    if palette is not None:
        np.testing.assert_array_equal(read_image(path), palette[rgb[..., 0]])
    for wrong in (np.full((2, 2), 256), np.full((2, 2), -1), np.zeros((2, 2)), rgb):
        with pytest.raises(ShapeError, match=r"integers 0\.\.255"):
            write_label_image(path, wrong)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_write_image(tmp_path, rgb):
    write_image(tmp_path / "a.png", rgb)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgb)
    write_image(tmp_path / "a.jpg", np.full((H, W, 3), 77, np.uint8))
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - 77).max() <= 1
    with pytest.raises(ImageError, match="suffix"):
        write_image(tmp_path / "a.xyz", rgb)
    with pytest.raises(ShapeError):
        write_image(tmp_path / "b.png", rgb[..., 0])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jpg", "a.png"]


def test_image_files(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "._b.JPG", "sub/c.webp", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG"]
    assert [path.name for path in list_images(tmp_path, recursive=True)] == ["a.png", "b.JPG", "c.webp"]
    with pytest.raises(DataError, match="folder"):
        list_images(tmp_path / "a.png")


def test_16_bits_take_little_more_memory_than_8(tmp_path):
    values = np.arange(4000 * 1000, dtype=np.uint16).reshape(4000, 1000)  # of all strips of rows
    Image.fromarray(values).save(tmp_path / "a.png")
    tracemalloc.start()
    pixels = read_image(tmp_path / "a.png")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(pixels[..., 2], np.round(values / 257))
    assert peak_bytes < 12 * values.size


def test_links_to_folders_are_followed_and_each_folder_listed_once(tmp_path):
    root, elsewhere = tmp_path / "images", tmp_path / "disk"
    for path in (root / "z/a.png", elsewhere / "b.png", elsewhere / "deep/c.png", root / ".store/x/d.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    links = {"link": elsewhere, "twin": elsewhere, "deep": elsewhere / "deep", "visible": root / ".store/x"}
    links |= {"inside": root / "z", "above": tmp_path, "loop": root}
    for name, target in links.items():
        (root / name).symlink_to(target)
    (elsewhere / "loop").symlink_to(elsewhere)
    names = [path.relative_to(root).as_posix() for path in list_images(root, recursive=True)]
    assert names == ["deep/c.png", "link/b.png", "visible/d.png", "z/a.png"]
    assert [path.name for path in list_files(root, "**/*.png")] == ["c.png", "b.png", "d.png", "a.png"]
    assert list_images(root) == []
    (tmp_path / "root").symlink_to(root)
    assert len(list_images(tmp_path / "root", recursive=True)) == 4


def test_sizes_of_a_thousand_real_images_a_second(shared_data):
    files = list_images(shared_data / "coco" / "images")
    assert len(files) > 100
    for file in files:
        with Image.open(BytesIO(file.read_bytes())) as image:
            assert image_size_hw(file) == (image.height, image.width)


@pytest.fixture
def reduced_from_small(monkeypatch):
    """Images of more than 10,000 pixels count as huge."""
    monkeypatch.setattr("otus.data.images.REDUCED_FROM", 10_000)


def smooth(size_hw: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    return np.stack([x * 255 // size_hw[1], y * 255 // size_hw[0], np.full_like(x, 90)], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(".jpg", "RGB"), (".jpg", "L"), (".png", "RGB"), (".png", "L"), (".png", "P"), (".webp", "RGB"), (".tif", "RGB")],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_huge_images_are_decoded_at_a_fraction_of_their_size(reduced_from_small, tmp_path, suffix, mode, orientation):
    image = Image.fromarray(smooth((304, 400))).convert(mode)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a{suffix}", exif=exif, quality=95)
    whole = read_image(tmp_path / f"a{suffix}")
    upright = (304, 400) if orientation == 1 else (400, 304)
    assert whole.shape[:2] == upright
    for needed, factor in ((38, 4), (19, 8), (76, 2), (77, 1)):
        pixels, size_hw = read_reduced_image(
            tmp_path / f"a{suffix}",
            lambda _, needed=needed: (needed, needed),
            expected_size_hw=upright,
        )
        assert size_hw == upright
        assert pixels.shape[:2] == tuple(side // factor for side in upright)
        expected = np.asarray(Image.fromarray(whole).reduce(factor), dtype=int)
        assert np.abs(pixels - expected).mean() < 3


def test_ordinary_images_are_decoded_whole(tmp_path):
    Image.fromarray(smooth((300, 400))).save(tmp_path / "a.jpg")
    pixels, size_hw = read_reduced_image(tmp_path / "a.jpg", lambda _: (10, 10))
    assert size_hw == (300, 400)
    np.testing.assert_array_equal(pixels, read_image(tmp_path / "a.jpg"))


def test_a_truncated_huge_image_is_found_out(reduced_from_small, tmp_path):
    Image.fromarray(smooth((300, 400))).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="truncated"):
        read_reduced_image(tmp_path / "a.jpg", lambda _: (10, 10))
