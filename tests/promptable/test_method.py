"""The interface over SAM: embeddings as values, prompts for many objects, refinement, and what cannot be."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("segment_anything", reason="the narrow SAM has its weights")

from otus.errors import DataError, OtusError, ShapeError, UsageError
from otus.promptable.embedding import Embedding
from otus.promptable.mask_upscaling import upscale, upscaled_masks
from otus.promptable.method import SamMethod
from otus.promptable.predictor import SamPredictor
from otus.structures import MaskCandidates, Prompt, Stroke
from tiny_sam import narrow_sam, picture, reference

IMAGE = picture(90, 130)


@pytest.fixture(scope="module")
def method() -> SamMethod:
    return SamMethod(narrow_sam(reference()), name="narrow")


@pytest.fixture(scope="module")
def embedding(method: SamMethod) -> Embedding:
    return method.embed(IMAGE)


def same(one: MaskCandidates, other: MaskCandidates) -> None:
    assert one.objects.tolist() == other.objects.tolist()
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    np.testing.assert_allclose(one.low_resolution_logits, other.low_resolution_logits, atol=1e-4)
    assert (one.masks.dense() != other.masks.dense()).mean() < 1e-4


def test_a_click_has_three_candidates_the_best_first(method: SamMethod, embedding: Embedding) -> None:
    prompt = Prompt([[40, 30]], [1])
    found = method.segment(embedding, prompt)
    assert len(found) == 3
    assert np.all(np.diff(found.scores) <= 0)
    predictor = SamPredictor(method)
    predictor.set_image(IMAGE)
    masks, scores, _ = predictor.predict(np.array([[40, 30]]), np.array([1]))
    order = np.argsort(-scores)
    assert np.array_equal(found.masks.dense(), masks[order])
    assert len(method.segment(embedding, prompt, multimask=False)) == 1
    assert len(SamMethod(method.sam, multimask=False).segment(embedding, prompt)) == 1


def test_a_prompt_that_is_not_ambiguous_has_one_answer(method: SamMethod, embedding: Embedding) -> None:
    predictor = SamPredictor(method)
    predictor.set_embedding(embedding)
    found = method.segment(embedding, Prompt([[40, 30], [5, 5]], [1, 0], box_xyxy=[20, 10, 80, 70]))
    masks, scores, logits = predictor.predict(
        np.array([[40, 30], [5, 5]]), np.array([1, 0]), np.array([20, 10, 80, 70]), multimask_output=False
    )
    assert np.array_equal(found.masks.dense(), masks)
    np.testing.assert_allclose(found.scores, scores)
    np.testing.assert_allclose(found.low_resolution_logits, logits)


def test_prompts_for_many_objects_in_one_call_are_prompts_one_by_one(method: SamMethod, embedding: Embedding) -> None:
    mask = np.zeros((90, 130), bool)
    mask[20:60, 30:90] = True
    prompts = [
        Prompt([[40, 30]], [1]),
        Prompt(box_xyxy=[10, 10, 50, 60]),
        Prompt([[100, 80]], [1]),
        Prompt([[100, 80], [3, 3]], [1, 0], mask=mask),
        Prompt([[40, 30], [100, 80], [5, 5]], [1, 2, 0]),
    ]
    many = method.segment_many(embedding, prompts)
    for prompt, found in zip(prompts, many, strict=True):
        same(found, method.segment(embedding, prompt))
    assert many[-1].objects.tolist() == [1, 2]
    of_second = method.segment(embedding, Prompt([[40, 30], [100, 80], [5, 5]], [0, 1, 0]))
    np.testing.assert_allclose(many[-1].scores[1], of_second.scores[0], atol=1e-5)
    assert method.segment_many(embedding, []) == []


def test_the_mask_before_refines(method: SamMethod, embedding: Embedding) -> None:
    first = method.segment(embedding, Prompt([[40, 30]], [1]))
    assert first.low_resolution_logits is not None
    before, prompt = first.low_resolution_logits[0], Prompt([[40, 30], [90, 60]], [1, 0])
    refined = method.segment(embedding, prompt, mask_logits=before)
    predictor = SamPredictor(method)
    predictor.set_embedding(embedding)
    _, scores, logits = predictor.predict(
        np.array([[40, 30], [90, 60]]), np.array([1, 0]), mask_input=before[None], multimask_output=False
    )
    np.testing.assert_allclose(refined.scores, scores)
    np.testing.assert_allclose(refined.low_resolution_logits, logits)
    assert np.abs(refined.scores - method.segment(embedding, prompt).scores).max() > 1e-3
    by_pixels = method.segment(embedding, Prompt(prompt.points_xy, prompt.point_labels, mask=first.best()))
    assert np.abs(by_pixels.scores - method.segment(embedding, prompt).scores).max() > 1e-3


def test_a_mask_of_pixels_becomes_logits_where_it_lies(method: SamMethod) -> None:
    mask = np.zeros((90, 130), bool)
    mask[:45, 65:] = True
    logits = method._mask_logits(mask, None, (90, 130))
    assert logits is not None
    assert logits.shape == (48, 48)
    assert logits[2, 40] == 10
    assert logits[2, 10] == logits[30, 40] == logits[40, 40] == -10  # the last lies in the padding


def test_an_embedding_does_not_change_and_is_saved(method: SamMethod, embedding: Embedding, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        embedding.features[0, 0, 0] = 1
    embedding.save(tmp_path / "photo.safetensors")
    read = Embedding.load(tmp_path / "photo.safetensors")
    assert np.array_equal(read.features, embedding.features)
    assert (read.size_hw, read.image, read.model) == ((90, 130), embedding.image, method.model_hash)
    prompt = Prompt([[40, 30]], [1])
    same(method.segment(read, prompt), method.segment(embedding, prompt))
    read.check_image(IMAGE)


def test_an_embedding_of_another_model_or_image_is_refused(method: SamMethod, embedding: Embedding) -> None:
    other = SamMethod(narrow_sam(reference(seed=1)))
    with pytest.raises(UsageError, match="of another model than narrow"):
        method.segment(other.embed(IMAGE), Prompt([[40, 30]], [1]))
    with pytest.raises(UsageError, match="of another model"):
        SamPredictor(method).set_embedding(other.embed(IMAGE))
    changed = IMAGE.copy()
    changed[0, 0, 0] ^= 1
    with pytest.raises(UsageError, match="of another image"):
        embedding.check_image(changed)
    with pytest.raises(UsageError, match="of another image"):
        embedding.check_image(IMAGE.reshape(130, 90, 3))


def test_a_file_that_is_no_embedding_is_named(tmp_path: Path, embedding: Embedding) -> None:
    from safetensors.numpy import save_file

    for name, content in (("missing", None), ("broken", b"nothing"), ("cut", embedding)):
        path = tmp_path / f"{name}.safetensors"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            content.save(path)
            path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match=f"{name}.safetensors: .*embed the image again"):
            Embedding.load(path)
    for damaged in ("{", '{"version": 1}'):
        save_file(
            {"features": np.zeros((1, 1, 1), np.float32)}, tmp_path / "d.safetensors", {"otus_embedding": damaged}
        )
        with pytest.raises(DataError, match=r"d\.safetensors: its description is damaged.*embed the image again"):
            Embedding.load(tmp_path / "d.safetensors")
    save_file({"features": np.zeros((1, 1, 1), np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(DataError, match="is not an embedding of an image"):
        Embedding.load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (lambda: Prompt([[130, 30]], [1]), ShapeError, r"prompts\[0\]: points: \(130, 30\) lies outside the image"),
        (lambda: Prompt([[-1, 30]], [1]), ShapeError, "outside the image of 130x90 pixels"),
        (lambda: Prompt(box_xyxy=[200, 10, 300, 60]), ShapeError, "box_xyxy: .* outside the image"),
        (lambda: Prompt(box_xyxy=[50, 10, 20, 60]), ShapeError, "box_xyxy: expected x1, y1, x2, y2 with x1 < x2"),
        (lambda: Prompt(mask=np.ones((90, 131), bool)), ShapeError, "mask: expected the size of the image, 130x90"),
        (lambda: Prompt(), UsageError, "nothing is marked as object for narrow"),
        (lambda: Prompt([[3, 3]], [0]), UsageError, "nothing is marked as object for narrow"),
        (lambda: Prompt(text="the owl"), UsageError, "narrow: its weights were not trained with text"),
        (lambda: Prompt(strokes=[Stroke([[3, 3]], 1)]), UsageError, "narrow: takes points, a box and a mask, no strokes"),
        (lambda: Prompt([[3, 3], [9, 9]], [1, 2], box_xyxy=[1, 1, 5, 5]), UsageError, "a box, a mask or text marks one"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be(
    method: SamMethod, embedding: Embedding, prompt: object, error: type[OtusError], message: str
) -> None:
    with pytest.raises(error, match=message):
        method.segment(embedding, prompt())  # type: ignore[operator]


def test_logits_of_a_wrong_size(method: SamMethod, embedding: Embedding) -> None:
    prompt = Prompt([[3, 3]], [1])
    for wrong in (np.zeros((47, 48)), np.full((48, 48), np.nan)):
        with pytest.raises(ShapeError, match=r"mask_logits: expected finite values of shape \(48, 48\) for narrow"):
            method.segment(embedding, prompt, mask_logits=wrong)
    with_mask = Prompt([[3, 3]], [1], mask=np.ones((90, 130), bool))
    with pytest.raises(UsageError, match="has a mask too"):
        method.segment(embedding, with_mask, mask_logits=np.zeros((48, 48)))


def test_calls_of_the_predictor_that_cannot_be(method: SamMethod) -> None:
    predictor = SamPredictor(method)
    with pytest.raises(UsageError, match="call set_image"):
        predictor.predict(np.array([[3, 3]]), np.array([1]))
    predictor.set_image(IMAGE)
    point = np.array([[3, 3]])
    with pytest.raises(UsageError, match="point_labels: expected 1 for the object, 0 for background"):
        predictor.predict(np.array([[3.0, 3.0]]), np.array([4]))
    with pytest.raises(UsageError, match="point_labels: expected one for each point, got none"):
        predictor.predict(point)
    with pytest.raises(UsageError, match="point_coords, point_labels: expected both or none"):
        predictor.predict_torch(torch.tensor([[[3.0, 3.0]]]), None)
    with pytest.raises(ShapeError, match=r"point_labels: expected finite numbers of shape \(1\), got int64 \(2,\)"):
        predictor.predict(point, np.array([1, 0]))
    with pytest.raises(ShapeError, match=r"point_coords: expected finite numbers of shape \(N, 2\)"):
        predictor.predict(np.array([3, 3]), np.array([1]))
    with pytest.raises(ShapeError, match="box: expected x1 <= x2"):
        predictor.predict(box=np.array([50, 10, 20, 60]))
    with pytest.raises(ShapeError, match=r"mask_input: expected finite numbers of shape \(1, 48, 48\)"):
        predictor.predict(point, np.array([1]), mask_input=np.zeros((48, 48)))
    with pytest.raises(UsageError, match="image_format: expected RGB or BGR"):
        predictor.set_image(IMAGE, "HSV")
    with pytest.raises(ShapeError, match=r"image: expected uint8 \(H, W, 3\), got float64"):
        predictor.set_image(IMAGE / 255)
    assert not predictor.is_image_set
    with pytest.raises(ShapeError, match="got uint8"):
        predictor.set_image(np.zeros((0, 5, 3), np.uint8))


@pytest.mark.parametrize(
    "size_hw", [(1, 1), (1, 12000), (12000, 700), pytest.param((12000, 12000), marks=pytest.mark.slow)]
)
def test_images_of_one_pixel_and_of_twelve_thousand(method: SamMethod, size_hw: tuple[int, int]) -> None:
    image = np.zeros((*size_hw, 3), np.uint8)
    image[: size_hw[0] // 2] = 200
    embedding = method.embed(image)
    found = method.segment(embedding, Prompt([[size_hw[1] - 0.5, size_hw[0] - 0.5]], [1]))
    assert len(found) == 3
    assert found.masks.size_hw == size_hw
    assert found.masks.form == "rle"


@pytest.mark.parametrize("size_hw", [(77, 31), (1, 1), (1, 50), (192, 192), (250, 130)])
def test_encoded_masks_are_those_of_resized_logits(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    logits = torch.nn.functional.interpolate(torch.from_numpy(rng.normal(0, 3, (1, 6, 9, 9))), (48, 48), mode="bicubic")
    logits = logits.float()
    logits[0, 0], logits[0, 1] = -9, 9
    pixels = upscale(logits, 192, size_hw)[0].numpy()
    found = upscaled_masks(logits[0].numpy(), 192, size_hw, threshold=0.25, offset=1)
    expected = pixels > 0.25
    assert (found.masks.dense() != expected).mean() < 1e-4
    assert np.array_equal(found.areas, found.masks.area())
    assert np.array_equal(found.boxes_xyxy, found.masks.boxes_xyxy())
    with np.errstate(invalid="ignore"):
        stability = (pixels > 1.25).sum(axis=(1, 2)) / (pixels > -0.75).sum(axis=(1, 2))
    np.testing.assert_allclose(found.stability, stability, atol=1e-3)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (3, 2), (9, 7), (0, 7), (9, 0)])
def test_masks_of_a_crop_lie_in_the_image(top: int, left: int) -> None:
    logits = np.random.default_rng(1).normal(0, 3, (4, 48, 48)).astype(np.float32)
    logits[0] = 9
    whole = np.zeros((4, 49, 67), bool)
    whole[:, top : top + 40, left : left + 60] = upscaled_masks(logits, 192, (40, 60)).masks.dense()
    placed = upscaled_masks(logits, 192, (40, 60), crop=(top, left, (49, 67)))
    assert np.array_equal(placed.masks.dense(), whole)


def test_an_empty_mask_marks_nothing(method: SamMethod, embedding: Embedding) -> None:
    with pytest.raises(UsageError, match=r"prompts\[0\]: nothing is marked as object"):
        method.segment(embedding, Prompt(mask=np.zeros(embedding.size_hw, bool)))


def test_boxes_of_masks_that_leave_a_column_below_and_enter_the_next_above() -> None:
    logits = np.full((1, 8, 8), -1.0, np.float32)
    logits[0, 5:, 0] = logits[0, :3, 1] = 1
    upscaled = upscaled_masks(logits, 8, (8, 8))
    assert upscaled.boxes_xyxy.tolist() == upscaled.masks.boxes_xyxy().tolist() == [[0, 0, 2, 8]]
