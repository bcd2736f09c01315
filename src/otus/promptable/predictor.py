"""SAM with the interface of segment-anything's ``SamPredictor``, so that code written for it runs.

Shape shorthand: B prompts, N points each, C masks, m x m their logits, h x w the image.

Official code: github.com/facebookresearch/segment-anything (Apache-2.0), with the same names, shapes and defaults. New code
should use :class:`~otus.promptable.method.SamMethod`, which works with the types of :mod:`otus.structures`.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from otus.errors import ShapeError, UsageError
from otus.parts.inference_mode import inference_mode
from otus.promptable.embedding import Embedding, hash_image
from otus.promptable.mask_upscaling import upscale, upscaled_masks
from otus.promptable.method import SamMethod
from otus.promptable.prompt_encoder import BOTTOM_RIGHT, NOT_A_POINT, PromptBatch
from otus.promptable.sam import normalise_and_pad, resized_hw


class ResizeLongestSide:
    """Resize an image for the model, and scale its coordinates to those of the padded image."""

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Resize an image so that its longer side has the target length."""
        height, width = resized_hw((image.shape[0], image.shape[1]), self.target_length)
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def apply_image_torch(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Resize a batch of images with antialiasing, which differs slightly from :meth:`apply_image`."""
        size_hw = resized_hw((image.shape[2], image.shape[3]), self.target_length)
        return F.interpolate(image, size_hw, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords(self, coords: Any, original_size: tuple[int, int]) -> Any:
        """Scale the x, y coordinates in the last axis of an array or tensor."""
        height, width = resized_hw(original_size, self.target_length)
        scale = (width / original_size[1], height / original_size[0])
        if isinstance(coords, Tensor):
            return coords.float() * coords.new_tensor(scale, dtype=torch.float32)
        return np.asarray(coords, dtype=np.float64) * scale

    def apply_boxes(self, boxes: Any, original_size: tuple[int, int]) -> Any:
        """Scale boxes (B, 4), xyxy."""
        return self.apply_coords(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    apply_coords_torch = apply_coords
    apply_boxes_torch = apply_boxes


class SamPredictor:
    """Set an image, then predict masks for prompts.

    Parameters
    ----------
    method
        The model, as a promptable method.

    Examples
    --------
    >>> predictor = SamPredictor(method)  # doctest: +SKIP
    >>> predictor.set_image(image)  # doctest: +SKIP
    >>> masks, scores, logits = predictor.predict(np.array([[250, 180]]), np.array([1]))  # doctest: +SKIP
    """

    def __init__(self, method: SamMethod) -> None:
        self.method = method
        self.model = method.sam
        self.transform = ResizeLongestSide(self.model.image_size)
        self._embedding: Embedding | None = None

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @property
    def is_image_set(self) -> bool:
        """Whether an image is set."""
        return self._embedding is not None

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self._require_embedding().size_hw

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the resized image, without padding."""
        return resized_hw(self.original_size, self.model.image_size)

    def set_image(self, image: UInt8[np.ndarray, "h w 3"], image_format: str = "RGB") -> None:
        """Embed an image, whose channels are ``RGB`` or ``BGR``."""
        if image_format not in ("RGB", "BGR"):
            raise UsageError(f"image_format: expected RGB or BGR, got {image_format!r}")
        self._embedding = None
        self._embedding = self.method.embed(image if image_format == "RGB" else image[..., ::-1])

    def set_torch_image(
        self, transformed_image: Float[Tensor, "1 3 h w"], original_image_size: tuple[int, int]
    ) -> None:
        """Embed an image that ``transform`` has resized, with values in [0, 255].

        Parameters
        ----------
        transformed_image
            RGB image, whose longer side has as many pixels as the model takes.
        original_image_size
            Height and width of the image before it was resized.

        Raises
        ------
        ShapeError
            If the image has another shape.
        """
        side = self.model.image_size
        expected = (1, 3, *resized_hw(original_image_size, side))
        if tuple(transformed_image.shape) != expected:
            raise ShapeError(f"transformed_image: expected shape {expected}, got {tuple(transformed_image.shape)}")
        pixels = transformed_image.float()
        features = self.method.encode(normalise_and_pad(pixels, side, preprocess=self.method.preprocess))
        size_hw = (original_image_size[0], original_image_size[1])
        self._embedding = Embedding(features, size_hw, hash_image(pixels.cpu().numpy()), self.method.model_hash)

    def set_embedding(self, embedding: Embedding) -> None:
        """Set an image that was embedded before.

        Raises
        ------
        UsageError
            If the embedding is of another model.
        """
        self.method.check(embedding)
        self._embedding = embedding

    def reset_image(self) -> None:
        """Forget the image."""
        self._embedding = None

    def get_image_embedding(self) -> Float[Tensor, "1 c h w"]:
        """Return the feature map of the image."""
        return self.method.features(self._require_embedding())[None]

    def predict(
        self,
        point_coords: Float[np.ndarray, "n 2"] | None = None,
        point_labels: Int[np.ndarray, "n"] | None = None,
        box: Float[np.ndarray, "4"] | None = None,
        mask_input: Float[np.ndarray, "1 m m"] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, Float32[np.ndarray, "c"], Float32[np.ndarray, "c m m"]]:
        """Return masks of the image, their predicted IoUs, and logits for the next ``mask_input``.

        Parameters
        ----------
        point_coords, point_labels
            x, y in pixels of the image; 1 for the object, 0 for background.
        box
            xyxy in pixels of the image.
        mask_input
            Low-resolution logits of a previous prediction.
        multimask_output
            Return three candidate masks, for an ambiguous prompt, else one.
        return_logits
            Return the logits of the image's pixels instead of masks.

        Raises
        ------
        UsageError
            If there is no image, or points come without labels or with unknown ones.
        ShapeError
            If an argument has another shape, or contains numbers that are not finite.
        """
        size_hw = self.original_size
        coords = boxes = labels = masks = None
        if point_coords is not None:
            if point_labels is None:
                raise UsageError("point_labels: expected one for each point, got none")
            points = _validated("point_coords", point_coords, (None, 2))
            coords = self._tensor(self.transform.apply_coords(points, size_hw)[None])
            labels = self._tensor(_validated("point_labels", point_labels, (len(points),))[None]).long()
        if box is not None:
            corners = _validated("box", np.reshape(box, -1), (4,))
            if (corners[2:] < corners[:2]).any():
                raise ShapeError(f"box: expected x1 <= x2 and y1 <= y2, got {corners.tolist()}")
            boxes = self._tensor(self.transform.apply_boxes(corners, size_hw))
        if mask_input is not None:
            side = self.model.mask_size
            masks = self._tensor(_validated("mask_input", mask_input, (1, side, side))[None])
        logits, ious = self._decode(coords, labels, boxes, masks, multimask_output)
        if return_logits:
            pixels = upscale(logits, self.model.image_size, size_hw)[0].cpu().numpy()
        else:
            pixels = upscaled_masks(logits[0].cpu().numpy(), self.model.image_size, size_hw).masks.dense()
        return pixels, ious[0].cpu().numpy(), logits[0].cpu().numpy()

    def predict_torch(
        self,
        point_coords: Float[Tensor, "b n 2"] | None,
        point_labels: Int[Tensor, "b n"] | None,
        boxes: Float[Tensor, "b 4"] | None = None,
        mask_input: Float[Tensor, "b 1 m m"] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Bool[Tensor, "b c h w"] | Float[Tensor, "b c h w"], Float[Tensor, "b c"], Float[Tensor, "b c m m"]]:
        """Return the same as :meth:`predict` for B prompts, as tensors; coordinates are those that ``transform`` returns."""
        logits, ious = self._decode(point_coords, point_labels, boxes, mask_input, multimask_output)
        pixels = upscale(logits, self.model.image_size, self.original_size)
        return pixels if return_logits else pixels > 0, ious, logits

    def _decode(
        self,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        multimask: bool,
    ) -> tuple[Float[Tensor, "b c m m"], Float[Tensor, "b c"]]:
        embedding = self._require_embedding()
        if (points is None) != (labels is None):
            raise UsageError("point_coords, point_labels: expected both or none of them")
        if labels is not None and not ((labels >= NOT_A_POINT) & (labels <= BOTTOM_RIGHT)).all():
            raise UsageError("point_labels: expected 1 for the object, 0 for background or -1 for padding")
        prompts = PromptBatch(
            None if points is None else points.float(), None if labels is None else labels.long(), boxes, masks
        )
        image = self.method.project_image(embedding) if masks is None else None
        with inference_mode(self.model) as sam:
            logits, ious = sam.decode(self.method.features(embedding), prompts, image=image)
        candidates = slice(1, None) if multimask else slice(0, 1)
        return logits[:, candidates], ious[:, candidates]

    def _require_embedding(self) -> Embedding:
        if self._embedding is None:
            raise UsageError("no image is set: call set_image(image) first")
        return self._embedding

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


def _validated(name: str, values: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return an array of finite numbers of a shape, in which None stands for any length."""
    array = np.asarray(values)
    matches = array.ndim == len(shape) and all(
        expected in (None, length) for expected, length in zip(shape, array.shape, strict=True)
    )
    if not matches or array.dtype.kind not in "fiub" or not np.isfinite(array).all():
        expected = ", ".join("N" if length is None else str(length) for length in shape)
        raise ShapeError(f"{name}: expected finite numbers of shape ({expected}), got {array.dtype} {array.shape}")
    return array
