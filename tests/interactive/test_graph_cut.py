"""GraphCut, GrabCut and alpha-expansion: on made-up images, on what cannot be, and against slower ways to the same."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.errors import OtusError, ShapeError, UsageError
from otus.interactive.color_models import HistogramModel, MixtureModel
from otus.interactive.grab_cut import GrabCut
from otus.interactive.graph_cut import GraphCut, GridEmbedding, confidence, edge_costs
from otus.interactive.max_flow import cut_cost
from otus.interactive.multi_object import alpha_expansion, energy
from otus.structures import Prompt, Stroke

Scene = tuple[np.ndarray, np.ndarray]


def disc(height: int, width: int, center_xy: tuple[float, float], radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.hypot(columns - center_xy[0], rows - center_xy[1]) <= radius


@pytest.fixture(scope="module")
def owl() -> Scene:
    """A reddish disc before a greenish background, both noisy."""
    rng = np.random.default_rng(0)
    mask = disc(60, 80, (35, 28), 16)
    image = np.where(mask[..., None], [150, 80, 60], [70, 120, 80]) + rng.normal(0, 18, (60, 80, 3))
    return np.clip(image, 0, 255).astype(np.uint8), mask


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def predict_mask(image: np.ndarray, prompt: Prompt, method: GraphCut | GrabCut | None = None) -> np.ndarray:
    method = method or GraphCut()
    return method.segment(method.embed(image), prompt).best()


def test_one_click_two_points_and_strokes(owl: Scene) -> None:
    image, mask = owl
    prompts = [
        Prompt([[35, 28]], [1]),
        Prompt([[35, 28], [5, 5]], [1, 0]),
        Prompt(strokes=[Stroke([[28, 28], [42, 30]], 1, 3), Stroke([[2, 50], [70, 55]], 0, 3)]),
        Prompt(scribbles=np.where(disc(60, 80, (35, 28), 5), 1, np.where(disc(60, 80, (70, 50), 5), 0, -1))),
    ]
    for prompt in prompts:
        assert iou(predict_mask(image, prompt), mask) > 0.97


def test_boykov_and_jolly_alone(owl: Scene) -> None:
    image, mask = owl
    strokes = [Stroke([[28, 28], [42, 30]], 1, 5), Stroke([[2, 50], [70, 55]], 0, 5)]
    assert iou(predict_mask(image, Prompt(strokes=strokes), GraphCut(location=0, rounds=1, max_color=9)), mask) > 0.95


def test_seeds_are_hard(owl: Scene) -> None:
    image, _ = owl
    seeds = Prompt([[3, 3], [35, 28], [35, 40], [70, 50]], [1, 1, 0, 0])
    mask = predict_mask(image, seeds)
    marked = seeds.seeds(mask.shape, point_radius=0.015 * 80)
    assert mask[marked == 1].all()
    assert not mask[marked == 0].any()


def test_an_answer_does_not_depend_on_the_prompts_before(owl: Scene) -> None:
    image, _ = owl
    method = GraphCut()
    used = method.embed(image)
    points = [[35, 28], [60, 10], [10, 50], [30, 20], [40, 40]]
    for count in (1, 3, 5, 2, 4):
        prompt = Prompt(points[:count], [1, 0, 0, 1, 1][:count])
        again, anew = method.segment(used, prompt), method.segment(method.embed(image), prompt)
        np.testing.assert_array_equal(again.best(), anew.best())
        assert again.scores == anew.scores


def test_several_objects_at_once() -> None:
    rng = np.random.default_rng(1)
    masks = [disc(60, 90, (18, 30), 12), disc(60, 90, (45, 30), 12), disc(60, 90, (72, 30), 12)]
    image = np.full((60, 90, 3), 110.0)
    for mask, color in zip(masks, ([190, 60, 60], [60, 170, 80], [190, 60, 60]), strict=True):
        image[mask] = color
    image = np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    prompt = Prompt([[18, 30], [45, 30], [72, 30], [45, 4]], [1, 2, 7, 0])
    candidates = GraphCut().segment(GraphCut().embed(image), prompt)
    assert candidates.objects.tolist() == [1, 2, 7]
    dense = candidates.masks.dense()
    assert (dense.sum(axis=0) <= 1).all()
    for number, mask in zip((1, 2, 7), masks, strict=True):
        assert iou(candidates.best(number), mask) > 0.95


def test_objects_of_one_pixel_each_stay_apart() -> None:
    image = np.full((20, 20, 3), 90, np.uint8)
    prompt = Prompt([[5, 5], [6, 5], [5, 6]], [1, 2, 3])
    dense = GraphCut().segment(GraphCut().embed(image), prompt).masks.dense()
    assert (dense.sum(axis=0) <= 1).all()
    assert [bool(dense[k, y, x]) for k, (x, y) in enumerate([(5, 5), (6, 5), (5, 6)])] == [True] * 3


@given(st.integers(0, 2**32), st.integers(2, 3))
def test_expansion_of_two_labels_is_the_best_and_of_three_nearly(seed: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    size = (2, 4) if labels == 2 else (2, 3)
    costs = rng.integers(0, 12, (labels, *size)).astype(np.int32)
    edges = rng.integers(0, 9, (4, *size)).astype(np.int32)
    minimised = energy(alpha_expansion(costs, edges), costs, edges)
    labellings = [np.array(labelling).reshape(size) for labelling in product(range(labels), repeat=size[0] * size[1])]
    best = min(energy(labelling, costs, edges) for labelling in labellings)
    assert minimised == best if labels == 2 else best <= minimised <= 2 * best


def test_energy_of_two_labels_is_the_cost_of_the_cut() -> None:
    rng = np.random.default_rng(5)
    costs, edges = rng.integers(0, 50, (2, 6, 7)).astype(np.int32), rng.integers(0, 9, (4, 6, 7)).astype(np.int32)
    labels = rng.integers(0, 2, (6, 7))
    assert energy(labels, costs, edges) == cut_cost(labels == 1, costs[0], costs[1], edges, neighbors=8)


def test_a_large_image_is_cut_reduced_and_its_border_in_full(owl: Scene) -> None:
    image, mask = owl
    large, large_mask = (np.repeat(np.repeat(one, 10, 0), 10, 1) for one in (image, mask))
    embedding = GridEmbedding.from_image(large[:-3, :-7], max_pixels=60 * 80)
    assert embedding.factor == 10
    for method, prompt in (
        (GraphCut(), Prompt([[350, 280], [50, 50]], [1, 0])),
        (GrabCut(), Prompt(box_xyxy=[160, 90, 540, 470])),
    ):
        predicted = method.segment(embedding, prompt).best()
        assert predicted.shape == (597, 793)
        assert iou(predicted, large_mask[:-3, :-7]) > 0.97
    # The border lies within a reduced pixel of where it was, and follows the pixels of the image.
    two = GraphCut().segment(embedding, Prompt([[350, 280], [50, 50], [780, 580]], [1, 0, 2])).masks.dense()
    assert (two.sum(axis=0) <= 1).all()


@pytest.mark.slow
def test_twenty_megapixels() -> None:
    import resource

    mask = disc(3648, 5472, (2500, 1800), 900)
    image = np.where(mask[..., None], [150, 80, 60], [70, 120, 80]).astype(np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert iou(predict_mask(image, Prompt([[2500, 1800], [50, 50]], [1, 0])), mask) > 0.99
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700e3  # KB; the grid in full would take 1.5 GB


def test_a_box_holds_an_object() -> None:
    """Of a small object in a tight box the border costs more than the colours gain: the last mask before that counts."""
    rng = np.random.default_rng(0)
    mask = disc(60, 80, (35, 28), 6)
    image = np.where(mask[..., None], 118, 128) + rng.normal(0, 25, (60, 80, 3))
    predicted = predict_mask(np.clip(image, 0, 255).astype(np.uint8), Prompt(box_xyxy=[29, 22, 42, 35]), GrabCut())
    assert iou(predicted, mask) > 0.6
    between_pixels = Prompt(box_xyxy=[3.1, 3, 3.4, 6])
    assert not predict_mask(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8), between_pixels, GrabCut()).any()


def test_the_confidence_of_a_mask_that_the_colours_contradict() -> None:
    assert confidence(np.ones((1, 1), dtype=bool), np.array([[-1e4]])) == 0
    assert confidence(np.ones((1, 2), dtype=bool), np.array([[0.0, 1e4]])) == 0.75


EMPTY_OR_FULL: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    ("black", np.zeros_like),
    ("white", lambda image: np.full_like(image, 255)),
]


@pytest.mark.parametrize(("name", "make"), EMPTY_OR_FULL)
def test_an_image_of_one_color(name: str, make: Callable[[np.ndarray], np.ndarray], owl: Scene) -> None:
    image = make(owl[0])
    mask = predict_mask(image, Prompt([[20, 30], [60, 30]], [1, 0]))
    assert mask[30, 20]
    assert not mask[30, 60]
    assert iou(mask, predict_mask(image, Prompt([[20, 30], [60, 30]], [1, 0]))) == 1
    boxed = predict_mask(image, Prompt(box_xyxy=[20, 20, 50, 40]), GrabCut())
    assert not boxed[:19].any()
    assert not boxed[:, 51:].any()


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_tiny_images(size_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3)).astype(np.uint8)
    assert predict_mask(image, Prompt([[0, 0]], [1]))[0, 0]
    assert predict_mask(image, Prompt(box_xyxy=[0, 0, *size_hw[::-1]]), GrabCut()).shape == size_hw


def test_everything_is_marked(owl: Scene) -> None:
    image, mask = owl
    np.testing.assert_array_equal(predict_mask(image, Prompt(scribbles=mask.astype(int))), mask)
    assert predict_mask(image, Prompt(scribbles=np.ones_like(mask, int))).all()
    boxed = Prompt(scribbles=mask.astype(int), box_xyxy=[0, 0, 80, 60])
    np.testing.assert_array_equal(predict_mask(image, boxed, GrabCut()), mask)


@pytest.mark.parametrize(
    ("method", "prompt", "error", "message"),
    [
        (GraphCut(), Prompt(), UsageError, "nothing is marked as object"),
        (GraphCut(), Prompt([[3, 3]], [0]), UsageError, "nothing is marked as object"),
        (GraphCut(), Prompt([[3, 3]], [1], box_xyxy=[1, 1, 5, 5]), UsageError, "no box"),
        (GraphCut(), Prompt([[3, 3]], [1], text="owl"), UsageError, "no text"),
        (GraphCut(), Prompt([[3, 3], [3, 3]], [1, 0]), ShapeError, r"pixel \(3, 3\) is marked as"),
        (GraphCut(), Prompt([[80, 3]], [1]), ShapeError, "outside the image of 80x60"),
        (GraphCut(), Prompt(scribbles=np.ones((6, 8), int)), ShapeError, "scribbles: expected the size of the image"),
        (GrabCut(), Prompt([[3, 3]], [1]), UsageError, "takes a box"),
        (GrabCut(), Prompt([[3, 3]], [2], box_xyxy=[1, 1, 9, 9]), UsageError, "takes one object"),
        (GrabCut(), Prompt(box_xyxy=[90, 1, 99, 9]), ShapeError, "box_xyxy: .* outside"),
    ],
)
def test_prompts_that_a_method_cannot_use(
    method: GraphCut | GrabCut, prompt: Prompt, error: type[OtusError], message: str, owl: Scene
) -> None:
    with pytest.raises(error, match=message):
        predict_mask(owl[0], prompt, method)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_images_that_cannot_be(image: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="image: expected uint8"):
        GraphCut().embed(image)


def test_grab_cut_takes_strokes(owl: Scene) -> None:
    image, mask = owl
    box = [12, 6, 60, 52]
    assert iou(predict_mask(image, Prompt(box_xyxy=box), GrabCut()), mask) > 0.95
    hole = predict_mask(image, Prompt(box_xyxy=box, strokes=[Stroke([[30, 28], [40, 28]], 0, 5)]), GrabCut())
    assert not hole[28, 30:40].any()


def test_a_mixture_is_the_density_of_its_gaussians() -> None:
    rng = np.random.default_rng(2)
    near, far = rng.normal(80, 5, (3, 30, 40)), rng.normal(170, 12, (3, 30, 40))
    chosen = rng.random((30, 40)) < 0.5
    planes = np.where(chosen, near, far).astype(np.float32)
    logs = MixtureModel(planes).log_likelihood(chosen.astype(float))
    exact = -0.5 * (np.square((near - 80) / 5).sum(axis=0) + 3 * np.log(2 * np.pi * 25))
    assert np.abs(logs - exact)[chosen].mean() < 0.5
    assert (logs[chosen].min() > logs[~chosen]).mean() > 0.99


@pytest.mark.parametrize("model", [HistogramModel, MixtureModel])
def test_colors_of_nothing_and_of_one_pixel(model: type[HistogramModel | MixtureModel]) -> None:
    planes = np.random.default_rng(3).random((3, 8, 9), np.float32) * 255
    nothing = model(planes).log_likelihood(np.zeros((8, 9)))
    assert np.isfinite(nothing).all()
    assert np.ptp(nothing) < 1e-6
    one = np.zeros((8, 9))
    one[2, 3] = 1
    assert model(planes).log_likelihood(one).argmax() == 2 * 9 + 3


def test_edges_cost_less_where_colors_differ() -> None:
    squared = np.zeros((4, 3, 3), np.float32)
    squared[0, 1, 1] = 900
    costs = edge_costs(squared, 10.0)
    assert costs[0, 0, 0] == costs[1, 0, 0] == 10_000
    assert costs[2, 0, 0] == round(10_000 / 2**0.5)
    assert costs[0, 1, 1] == round(10_000 * np.exp(-900 / (2 * 900 / 36)))


def test_a_mask_of_the_frame_before(owl: Scene) -> None:
    """It starts from a mask three pixels beside the object, also where the image is reduced."""
    image, mask = owl
    moved = np.roll(mask, 3, axis=1)
    assert iou(predict_mask(image, Prompt(mask=moved)), mask) > 0.95 > iou(moved, mask)
    assert iou(predict_mask(image, Prompt([[35, 28]], [1], mask=moved)), mask) > 0.95
    large, large_mask = (np.repeat(np.repeat(one, 10, 0), 10, 1) for one in (image, moved))
    embedding = GridEmbedding.from_image(large[:-3, :-7], max_pixels=60 * 80)
    predicted = GraphCut().segment(embedding, Prompt(mask=large_mask[:-3, :-7])).best()
    assert iou(predicted, np.repeat(np.repeat(mask, 10, 0), 10, 1)[:-3, :-7]) > 0.95
    with pytest.raises(UsageError, match="nothing is marked as object"):
        predict_mask(image, Prompt(mask=np.zeros_like(mask)))
    assert predict_mask(image, Prompt(mask=np.ones_like(mask))).mean() > 0.9


def test_parts_without_a_seed_are_left_out() -> None:
    image = np.full((40, 90, 3), [60, 110, 90], np.uint8)
    image[10:30, 10:30] = image[10:30, 60:80] = [170, 70, 60]
    mask = predict_mask(image, Prompt([[20, 20], [45, 5]], [1, 0]))
    assert mask[10:30, 10:30].all()
    assert mask.sum() == 400


@pytest.mark.parametrize("build", [lambda: GraphCut(rounds=0), lambda: GrabCut(max_rounds=0)])
def test_no_rounds_are_refused(build) -> None:
    with pytest.raises(UsageError, match="rounds: expected at least 1, got 0"):
        build()
