"""Images side by side: titles stay within their panel, and mosaics have no gaps."""

import numpy as np
import pytest

from otus.visualization import panels
from otus.visualization.panels import Panel, grid, mosaic

SHADES = [(200, 60, 60), (60, 200, 60), (60, 60, 200), (200, 200, 60), (60, 200, 200), (200, 60, 200)]


def plain(height: int, width: int, shade: int = 0) -> np.ndarray:
    return np.full((height, width, 3), SHADES[shade], dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_mosaics_fill_their_rows_from_edge_to_edge(count):
    rng = np.random.default_rng(count)
    sizes = rng.integers(100, 400, (count, 2)).tolist()
    groups = [("", [plain(*size, i % 6), plain(*size, (i + 1) % 6)]) for i, size in enumerate(sizes)]
    page = mosaic(groups)
    assert not (page == 255).all(axis=2).any(), "no white"
    ground = (page == panels._MOSAIC_BACKGROUND).all(axis=2)
    assert ground.mean() < 0.05, "lines between images and no more"
    images = ~ground
    assert images[:, 0].mean() > 0.9
    assert images[:, -1].mean() > 0.9
    assert {tuple(colour) for colour in page[images].tolist()} == set(SHADES[: min(count + 1, 6)])


def test_the_images_of_a_pair_have_one_height_and_keep_their_shape():
    page = mosaic(
        [("owl.jpg: labels | found", [plain(300, 400, 0), plain(300, 400, 1)])], [("owl", np.uint8(SHADES[2]))]
    )
    extents = []
    for shade in SHADES[:2]:
        rows, columns = np.nonzero((page == shade).all(axis=2))
        extents.append((rows.min(), rows.max(), columns.max() - columns.min() + 1))
    (top, bottom, width), (other_top, other_bottom, other_width) = extents
    assert (top, bottom) == (other_top, other_bottom)
    assert width == pytest.approx(other_width, abs=1)
    assert width / (bottom - top + 1) == pytest.approx(4 / 3, rel=0.01)
    assert (page[-30:] == SHADES[2]).all(axis=2).any(), "the legend"


def test_a_strip_does_not_make_a_mosaic_endless():
    page = mosaic([("", [plain(3000, 10)]), ("", [plain(10, 3000, 1)]), ("", [plain(100, 100, 2)])])
    assert max(page.shape) < 4000
    assert all((page == shade).all(axis=2).any() for shade in SHADES[:3])


def test_long_names_of_files_do_not_reach_into_their_neighbours():
    name = "IMG_20260714_a_very_long_name_of_a_photograph_from_the_holidays_by_the_sea_0001.jpg"
    page = grid([Panel(name, name, plain(90, 120, 0)), Panel("b", "", plain(90, 120, 1))], columns=2, width=240)
    rows, _ = np.nonzero((page == SHADES[0]).all(axis=2))
    head = page[: rows.min()]
    assert (head[:, 10 + 240 + 1 : 10 + 240 + 9] == 255).all(), "nothing is written in the gap between the two"
