"""Semantic maps of tiles and of several views: no seams, bounded memory, averages that are averages."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from otus.errors import UsageError
from otus.inference.averaging import Averaging
from otus.inference.blending import blended
from otus.inference.pipeline import Pipeline
from otus.inference.predictor import Predictor
from otus.inference.tiling import Tiles
from otus.parts.preprocess import Preprocess
from otus.semantic.full_resolution import full_resolution
from otus.semantic.sliding_window import sliding_window_segmenter
from otus.structures import Categories, SemanticScores
from tiny_run import TinyDetector

CATEGORIES = Categories(("sky", "owl", "tree"))


def predictor(*, brightness_only: bool = True) -> Predictor:
    """It sees one pixel, or 15 pixels around it."""
    torch.manual_seed(0)
    if brightness_only:
        system = full_resolution(CATEGORIES, widths=(8,))
        with torch.no_grad():
            system.encoder.layers[0][0].weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    else:
        system = sliding_window_segmenter(CATEGORIES, widths=(8, 8, 8))
    nn.init.normal_(system.head.weight)
    return Predictor(system, preprocess=Preprocess(mean=(0.5,) * 3), name="tiny", device="cpu")


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("whole_image", [False, True])
@pytest.mark.parametrize("size_hw", [(50, 70), (24, 100), (100, 20), (24, 24)])
def test_tiles_of_a_model_that_sees_one_pixel_are_the_whole(size_hw, whole_image):
    image, model = picture(*size_hw), predictor()
    (expected,) = model.predict(image)
    tiles = Tiles(24, 0.25, whole_image=whole_image)
    for batch_size in (1, 4):
        (found,) = model.predict(image, tiles=tiles, batch_size=batch_size)
        assert found.semantic.size_hw == size_hw
        assert (found.semantic.labels == expected.semantic.labels).mean() > 0.999  # but for ties within rounding
    assert len(np.unique(expected.semantic.labels)) > 1


def test_where_tiles_disagree_the_scores_go_over_from_one_to_the_other():
    """One tile is sure by 3, the next says otherwise by 1: the change is where 3 w = 1 - w, not at a border."""
    settings = Tiles(40, 0.5, whole_image=False)
    windows = list(settings.windows((40, 60)))
    two = Categories(("left", "right"))
    said = [np.zeros((2, 5, 5), np.float32) for _ in windows]
    said[0][0], said[1][1] = 3, 1
    tiles = [(window, SemanticScores(scores, two)) for window, scores in zip(windows, said, strict=True)]
    labels = blended(tiles, settings, (40, 60)).labels
    assert (labels == labels[0]).all()
    assert np.flatnonzero(np.diff(labels[0])).tolist() == [34]  # of the overlap 20..39, three quarters
    whole = SemanticScores(np.stack([np.zeros((9, 9)), np.full((9, 9), 5.0)]).astype(np.float32), two)
    assert blended(tiles, settings, (40, 60), full_image=whole).labels.all()


def test_a_tile_model_with_context_errs_only_near_borders_and_less_with_overlap():
    image, model = picture(60, 90), predictor(brightness_only=False)
    (expected,) = model.predict(image)
    wrong = []
    for overlap in (0.0, 0.5):
        (found,) = model.predict(image, tiles=Tiles(30, overlap, whole_image=False))
        wrong.append(int((found.semantic.labels != expected.semantic.labels).sum()))
    assert 0 < wrong[1] < wrong[0] / 2


def test_memory_is_that_of_a_row_of_tiles():
    settings, size_hw = Tiles(64, 0.25, whole_image=False), (2048, 256)
    categories = Categories(tuple("abcdefghijklmnopqrstu"))
    scores = SemanticScores(np.random.default_rng(0).random((21, 16, 16), np.float32), categories)
    pairs = [(window, scores) for window in settings.windows(size_hw)]
    blended(pairs[:4], settings, (64, 256))
    tracemalloc.start()
    blended(pairs, settings, size_hw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    all_scores, band = 4 * 21 * size_hw[0] * size_hw[1], 4 * 21 * 64 * size_hw[1]
    assert peak < 2 * band + 6 * size_hw[0] * size_hw[1] < all_scores / 5


def test_the_average_of_views_is_the_mean_of_their_probabilities():
    model, image = predictor(brightness_only=False), picture(20, 30)
    sample = model.prepare(image, "made")
    (found,) = Averaging(flip=True).predict(model.system, [sample])
    (plain,) = model.system.predict([sample])
    (mirrored,) = model.system.predict([{"image": sample["image"].flip(-1)}])
    probabilities = [torch.from_numpy(one.scores.copy()).softmax(0) for one in (plain, mirrored)]
    np.testing.assert_allclose(found.scores, (probabilities[0] + probabilities[1].flip(-1)) / 2, atol=1e-6)
    (once,) = Averaging().predict(model.system, [sample])
    np.testing.assert_allclose(once.scores, probabilities[0], atol=1e-6)
    (sized,) = Averaging(scales=(0.5, 1, 2)).predict(model.system, [sample])
    assert sized.size_hw == (20, 30)
    np.testing.assert_allclose(sized.scores.sum(axis=0), 1, atol=1e-5)
    (prediction,) = model.predict(image, averaging=Averaging(flip=True))
    np.testing.assert_array_equal(prediction.semantic.labels, found.resized((20, 30)).labels)


def test_averaging_is_refused_for_other_tasks_and_senseless_scales():
    detector = TinyDetector(Categories(("owl",)))
    with pytest.raises(UsageError, match="flips and scales are for semantic segmentation"):
        Pipeline(detector, Preprocess(), averaging=Averaging(flip=True))
    for scales in ((), (0.0,), (float("nan"),), (100.0,)):
        with pytest.raises(UsageError, match="scales: expected factors"):
            Averaging(scales=scales)
