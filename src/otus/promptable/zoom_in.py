"""Zoom-in: predict the mask of a small object in the enlarged window around it.

A model that resizes images to 384 pixels sees little of a small object. The window around its mask and the prompt is
embedded at the model's full resolution, and the mask is predicted again there. This takes one more embedding per window,
which further clicks on the object share.

Paper: "f-BRS: Rethinking Backpropagating Refinement for Interactive Segmentation" (Sofiiuk et al., CVPR 2020,
arXiv:2001.10331), section 4. There the window is that of the previous mask; here, that of the mask predicted for the same
prompt in the whole image, so that the first click zooms in too.

Shape shorthand: h x w the image, m x m the logits of a mask.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from otus.promptable.embedding import Embedding
from otus.promptable.method import MASK_LOGIT, SamMethod
from otus.structures import MaskCandidates, Masks, Prompt

CONTEXT = 1.4
"""Side of a window relative to what it contains."""
MAX_SHARE = 0.7
"""Largest side of a window relative to the image's longer side; a larger one would show the object hardly larger."""
_STEPS = 12  # sides of windows are multiples of this fraction of the image's longer side, so that clicks share windows
_MAX_WINDOWS = 16  # whose embeddings are kept

_Window = tuple[int, int, int, int]  # x1, y1, x2, y2


@dataclass(frozen=True, eq=False)
class ZoomableEmbedding:
    """An image with its embedding, and with those of windows that prompts needed.

    Parameters
    ----------
    image
        RGB image.
    whole
        Its embedding.
    """

    image: UInt8[np.ndarray, "h w 3"]
    whole: Embedding
    _windows: OrderedDict[_Window, Embedding] = field(default_factory=OrderedDict, repr=False)


class ZoomIn:
    """A promptable method that predicts the masks of small objects in the enlarged windows around them.

    Parameters
    ----------
    method
        The method that predicts the masks.

    Examples
    --------
    >>> method = ZoomIn(load_sam("sam_efficientnet_lite0"))  # doctest: +SKIP
    >>> method.segment(method.embed(image), Prompt([[250, 180]], [1])).scores  # doctest: +SKIP
    array([0.97, 0.91, 0.83])
    """

    def __init__(self, method: SamMethod) -> None:
        self.method = method
        self.name = method.name

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> ZoomableEmbedding:
        """Return the embedding of an RGB image; errors are those of :meth:`SamMethod.embed`."""
        whole = self.method.embed(image)
        image = np.array(image)  # the caller may change theirs
        return ZoomableEmbedding(image, whole)

    def segment(
        self,
        embedding: ZoomableEmbedding,
        prompt: Prompt,
        *,
        multimask: bool | None = None,
        mask_logits: Float[np.ndarray, "m m"] | None = None,
    ) -> MaskCandidates:
        """Return the masks for a prompt; parameters, result and errors are those of :meth:`SamMethod.segment`."""
        candidates = self.method.segment(embedding.whole, prompt, multimask=multimask, mask_logits=mask_logits)
        size_hw = embedding.whole.size_hw
        window = window_around(_marked_boxes(prompt, candidates.masks), size_hw)
        if window is None:
            return candidates
        if mask_logits is None and prompt.mask is None and len(prompt.points_xy) and len(candidates) == 1:
            assert candidates.low_resolution_logits is not None
            mask_logits = candidates.low_resolution_logits[0]
        found = self.method.segment(
            self._embed_window(embedding, window),
            _prompt_in_window(prompt, window),
            multimask=multimask,
            mask_logits=None if mask_logits is None else _logits_in_window(mask_logits, window, size_hw),
        )
        assert found.low_resolution_logits is not None
        return replace(
            found,
            masks=found.masks.moved(top=window[1], left=window[0], size_hw=size_hw),
            low_resolution_logits=_logits_in_image(found.low_resolution_logits, window, size_hw),
        )

    def _embed_window(self, embedding: ZoomableEmbedding, window: _Window) -> Embedding:
        windows = embedding._windows
        if window not in windows:
            x1, y1, x2, y2 = window
            windows[window] = self.method.embed(embedding.image[y1:y2, x1:x2])
        windows.move_to_end(window)
        if len(windows) > _MAX_WINDOWS:
            windows.popitem(last=False)
        return windows[window]


def window_around(boxes_xyxy: Float[np.ndarray, "n 4"], size_hw: tuple[int, int]) -> _Window | None:
    """Return x1, y1, x2, y2 of a square window around boxes, cut off at the image's border; None if it would be too large.

    >>> window_around(np.array([[100.0, 80.0, 130.0, 140.0]]), (480, 640))
    (53, 53, 213, 213)
    """
    if not len(boxes_xyxy):
        return None
    longer_side = max(size_hw)
    (x1, y1), (x2, y2) = boxes_xyxy[:, :2].min(axis=0), boxes_xyxy[:, 2:].max(axis=0)
    steps = math.ceil(CONTEXT * max(x2 - x1, y2 - y1) / longer_side * _STEPS) + 1  # one more, as it starts at a step
    if steps > MAX_SHARE * _STEPS:
        return None
    side = math.ceil(steps * longer_side / _STEPS)
    ranges = []
    for start, end, whole in ((x1, x2, size_hw[1]), (y1, y2, size_hw[0])):
        step = math.floor(((start + end - side) / 2) / longer_side * _STEPS + 0.5)
        first = max(0, min(math.floor(step * longer_side / _STEPS), whole - side))
        ranges.append((first, min(first + side, whole)))
    (left, right), (top, bottom) = ranges
    return left, top, right, bottom


def _marked_boxes(prompt: Prompt, masks: Masks) -> Float[np.ndarray, "boxes 4"]:
    """Return the boxes of the points, the box and the mask of a prompt, and of masks that are not empty."""
    points = np.asarray(prompt.points_xy)
    boxes = [np.concatenate([points, points + 1], axis=1), masks[masks.area() > 0].boxes_xyxy()]
    if prompt.box_xyxy is not None:
        boxes.append(np.clip(prompt.box_xyxy, 0, np.tile(masks.size_hw[::-1], 2))[None])
    if prompt.mask is not None and prompt.mask.any():
        boxes.append(Masks.from_dense(prompt.mask[None]).boxes_xyxy())
    return np.concatenate(boxes)


def _prompt_in_window(prompt: Prompt, window: _Window) -> Prompt:
    x1, y1, x2, y2 = window
    return replace(
        prompt,
        points_xy=np.asarray(prompt.points_xy) - [x1, y1],
        box_xyxy=None if prompt.box_xyxy is None else np.asarray(prompt.box_xyxy) - [x1, y1, x1, y1],
        mask=None if prompt.mask is None else prompt.mask[y1:y2, x1:x2],
    )


def _logits_in_window(
    logits: Float[np.ndarray, "m m"], window: _Window, size_hw: tuple[int, int]
) -> Float32[np.ndarray, "m m"]:
    """Return the logits of a padded window, given those of the padded image."""
    x1, y1, x2, y2 = window
    side, scale = len(logits), len(logits) / max(size_hw)
    width, height = (max(1, round(side * length / max(x2 - x1, y2 - y1))) for length in (x2 - x1, y2 - y1))
    resized = _resize(logits, (width, height), (x1 * scale, y1 * scale, x2 * scale, y2 * scale))
    padded = np.full((side, side), -MASK_LOGIT, np.float32)
    padded[:height, :width] = resized
    return padded


def _logits_in_image(
    logits: Float[np.ndarray, "n m m"], window: _Window, size_hw: tuple[int, int]
) -> Float32[np.ndarray, "n m m"]:
    """Return the logits of the padded image, given those of the padded window; outside it there is background."""
    x1, y1, x2, y2 = window
    side = logits.shape[1]
    left, top, right, bottom = (round(value * side / max(size_hw)) for value in window)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    scale = side / max(x2 - x1, y2 - y1)
    padded = np.full(logits.shape, -MASK_LOGIT, np.float32)
    for old, new in zip(logits, padded, strict=True):
        box = (0, 0, (x2 - x1) * scale, (y2 - y1) * scale)
        new[top:bottom, left:right] = _resize(old, (right - left, bottom - top), box)
    return padded


def _resize(
    logits: Float[np.ndarray, "m m"], size_wh: tuple[int, int], box: tuple[float, float, float, float]
) -> Float32[np.ndarray, "h w"]:
    """Return a box of logits, resized bilinearly."""
    image = Image.fromarray(np.asarray(logits, np.float32))
    return np.asarray(image.resize(size_wh, Image.Resampling.BILINEAR, box=box))
