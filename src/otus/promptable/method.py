"""SAM behind the interface of every promptable method: an image is embedded once, then prompts are answered.

Shape shorthand: h x w the image, M + 1 masks of a prompt, m x m their logits.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image
from torch import Tensor

from otus.errors import ShapeError, UsageError
from otus.parts.inference_mode import inference_mode
from otus.parts.preprocess import Preprocess
from otus.promptable.embedding import Embedding, hash_image, hash_weights
from otus.promptable.mask_decoder import ImageSide
from otus.promptable.mask_upscaling import upscaled_masks
from otus.promptable.prompt_encoder import PromptBatch
from otus.promptable.sam import Sam, prepare_image, resized_hw
from otus.structures import MaskCandidates, Masks, Prompt
from otus.structures.prompt import BACKGROUND

MASK_LOGIT = 10.0
"""Logit of what lies in a mask that is given as pixels."""


class _ObjectPrompt(NamedTuple):
    """What is marked for one object: which prompt it is of, its number, and parts in pixels of the padded image."""

    prompt: int
    number: int
    points: Float[np.ndarray, "n 2"]
    labels: np.ndarray
    box: Float[np.ndarray, "4"] | None
    mask: Float32[np.ndarray, "m m"] | None
    multimask: bool


class SamMethod:
    """A SAM that is ready for images.

    Parameters
    ----------
    sam
        The model; it is not changed.
    preprocess
        Whose mean and std its weights were trained with (default: ImageNet's).
    name
        In answers.
    multimask
        Default of :meth:`segment`'s.
    bfloat16
        Whether the image encoder computes in bfloat16.

    Examples
    --------
    >>> method = SamMethod(sam)  # doctest: +SKIP
    >>> embedding = method.embed(image)  # doctest: +SKIP
    >>> method.segment(embedding, Prompt([[250, 180]], [1])).scores  # doctest: +SKIP
    array([0.97, 0.91, 0.83])
    """

    def __init__(
        self,
        sam: Sam,
        *,
        preprocess: Preprocess | None = None,
        name: str = "sam",
        multimask: bool | None = None,
        bfloat16: bool = False,
    ) -> None:
        self.sam = sam
        self.preprocess = preprocess or Preprocess()
        self.name = name
        self.multimask = multimask
        self.bfloat16 = bfloat16

    @cached_property
    def model_hash(self) -> str:
        """SHA-256 of the weights, by which embeddings are told apart."""
        return hash_weights(self.sam)

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> Embedding:
        """Return the map of an RGB image.

        Raises
        ------
        ShapeError
            If it is no RGB image of at least one pixel.
        """
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ShapeError(f"image: expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
        prepared = prepare_image(image, self.sam.image_size, preprocess=self.preprocess).to(self.sam.device)
        with inference_mode(self.sam) as sam, self._autocast():
            features = sam.image_encoder(prepared)[0].float().cpu().numpy()
        return Embedding(features, (image.shape[0], image.shape[1]), hash_image(image), self.model_hash)

    def segment(
        self,
        embedding: Embedding,
        prompt: Prompt,
        *,
        multimask: bool | None = None,
        mask_logits: Float[np.ndarray, "m m"] | None = None,
    ) -> MaskCandidates:
        """Return the masks for a prompt, the best candidate of each object first.

        Of several objects, the points of the others are background for each.

        Parameters
        ----------
        embedding
            Of :meth:`embed`.
        prompt
            Points, a box and a mask; box and mask only for one object.
        multimask
            Return all candidates for each object, else the one mask for prompts that are not ambiguous (default: all for a
            single point).
        mask_logits
            ``low_resolution_logits`` of one candidate of the answer before, to be refined; more than the prompt's ``mask``
            can say.

        Raises
        ------
        UsageError
            If nothing is marked as object, the prompt has parts that this model does not take, or the embedding is of
            another model.
        ShapeError
            If something is marked outside the image, or a mask is of another size.
        """
        return self.segment_many(embedding, [prompt], multimask=multimask, mask_logits=mask_logits)[0]

    def segment_many(
        self,
        embedding: Embedding,
        prompts: Sequence[Prompt],
        *,
        multimask: bool | None = None,
        mask_logits: Float[np.ndarray, "m m"] | None = None,
    ) -> list[MaskCandidates]:
        """Return the answer to each prompt, as :meth:`segment` gives it, in one call.

        Raises
        ------
        UsageError, ShapeError
            As of :meth:`segment`; the message names the prompt.
        """
        self.check(embedding)
        multimask = self.multimask if multimask is None else multimask
        objects = [
            one
            for index, prompt in enumerate(prompts)
            for one in self._objects_of(index, prompt, embedding.size_hw, multimask, mask_logits)
        ]
        groups = defaultdict(list)
        for place, one in enumerate(objects):
            groups[len(one.labels), one.box is None, one.mask is None].append(place)
        answers: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for places in groups.values():
            for start in range(0, len(places), self.sam.chunk):
                part = places[start : start + self.sam.chunk]
                answers |= zip(part, self._decode(embedding, [objects[place] for place in part]), strict=True)
        columns: list[list[tuple[int, np.ndarray, np.ndarray]]] = [[] for _ in prompts]
        for place, one in enumerate(objects):
            columns[one.prompt].append((one.number, *answers[place]))
        return [self._candidates(embedding, parts) for parts in columns]

    def check(self, embedding: Embedding) -> None:
        """UsageError unless an embedding is of this model."""
        if embedding.model != self.model_hash:
            raise UsageError(
                f"embedding: it is of another model than {self.name} with these weights, embed the image again"
            )

    def features(self, embedding: Embedding) -> Float[Tensor, "c h w"]:
        """Return the map on the model's device."""
        return torch.from_numpy(np.array(embedding.features)).to(self.sam.device)

    def image_side(self, embedding: Embedding) -> ImageSide:
        """Return what the decoder needs of an embedding without a mask prompt; kept with the embedding."""
        if id(self) not in embedding._derived:
            with inference_mode(self.sam) as sam:
                embedding._derived[id(self)] = sam.image_side(self.features(embedding))
        side: ImageSide = embedding._derived[id(self)]
        return side

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.sam.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _objects_of(
        self,
        index: int,
        prompt: Prompt,
        size_hw: tuple[int, int],
        multimask: bool | None,
        mask_logits: Float[np.ndarray, "m m"] | None,
    ) -> Iterator[_ObjectPrompt]:
        """Yield what a prompt marks, one object at a time."""
        if prompt.text is not None:
            raise UsageError(f"{self.name}: its weights were not trained with text; give points, a box or a mask")
        if prompt.strokes or prompt.scribbles is not None:
            raise UsageError(f"{self.name}: takes points, a box and a mask, no strokes and no scribbles")
        try:
            prompt.check_size(size_hw)
        except ShapeError as error:
            raise ShapeError(f"prompts[{index}]: {error}") from None
        points, labels = np.asarray(prompt.points_xy), np.asarray(prompt.point_labels)
        numbers = np.unique(labels[labels > BACKGROUND]).tolist()
        if not numbers and prompt.box_xyxy is None and prompt.mask is None and mask_logits is None:
            raise UsageError(
                f"prompts[{index}]: nothing is marked as object for {self.name}; give a point on it, a box or a mask"
            )
        only = prompt.box_xyxy is not None or prompt.mask is not None or mask_logits is not None
        if only and len(numbers) > 1:
            raise UsageError(
                f"prompts[{index}]: a box or a mask marks one object, but the points mark {len(numbers)}; "
                "give a prompt for each"
            )
        mask = self._mask_logits(prompt.mask, mask_logits, size_hw)
        scale = self._scale(size_hw)
        box = None if prompt.box_xyxy is None else np.asarray(prompt.box_xyxy) * np.tile(scale, 2)
        for number in numbers or [1]:
            ambiguous = len(labels) == 1 and box is None and mask is None
            wanted = ambiguous if multimask is None else multimask
            yield _ObjectPrompt(index, number, points * scale, labels == number, box, mask, wanted)

    def _scale(self, size_hw: tuple[int, int]) -> Float[np.ndarray, "2"]:
        """Of x and y, from the image to the padded one."""
        height, width = resized_hw(size_hw, self.sam.image_size)
        return np.array([width / size_hw[1], height / size_hw[0]])

    def _mask_logits(
        self,
        mask: Bool[np.ndarray, "h w"] | None,
        logits: Float[np.ndarray, "m m"] | None,
        size_hw: tuple[int, int],
    ) -> Float32[np.ndarray, "m m"] | None:
        """A mask prompt as the prompt encoder takes it."""
        side = self.sam.mask_size
        if logits is not None:
            if mask is not None:
                raise UsageError("mask_logits: the prompt has a mask too, give one of them")
            logits = np.asarray(logits, dtype=np.float32)
            if logits.shape != (side, side) or not np.isfinite(logits).all():
                raise ShapeError(f"mask_logits: expected finite ({side}, {side}) for {self.name}, got {logits.shape}")
            return logits
        if mask is None:
            return None
        height, width = resized_hw(size_hw, self.sam.image_size)
        scaled = np.zeros((self.sam.image_size,) * 2, np.uint8)
        pixels = Image.fromarray(mask.astype(np.uint8) * 255)
        scaled[:height, :width] = np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR))
        shares = np.asarray(Image.fromarray(scaled).resize((side, side), Image.Resampling.BOX), np.float32) / 255
        return MASK_LOGIT * (2 * shares - 1)

    def _decode(
        self, embedding: Embedding, objects: Sequence[_ObjectPrompt]
    ) -> list[tuple[Float32[np.ndarray, "masks m m"], Float32[np.ndarray, "masks"]]]:
        """Logits and scores of prompts of the same parts, the best first."""
        device, first = self.sam.device, objects[0]

        def stacked(parts: Sequence[Any]) -> Tensor:
            return torch.from_numpy(np.stack(parts).astype(np.float32)).to(device)

        has_points = bool(len(first.labels))
        batch = PromptBatch(
            points=stacked([one.points for one in objects]) if has_points else None,
            labels=stacked([one.labels for one in objects]).long() if has_points else None,
            boxes=None if first.box is None else stacked([one.box for one in objects]),
            masks=None if first.mask is None else stacked([one.mask for one in objects])[:, None],
        )
        image = self.image_side(embedding) if first.mask is None else None
        with inference_mode(self.sam) as sam:
            logits, ious = sam.decode(self.features(embedding), batch, image=image)
        answers = []
        for one, some_logits, some_ious in zip(objects, logits.cpu().numpy(), ious.cpu().numpy(), strict=True):
            order = 1 + np.argsort(-some_ious[1:], kind="stable") if one.multimask else np.zeros(1, np.int64)
            answers.append((some_logits[order], some_ious[order]))
        return answers

    def _candidates(self, embedding: Embedding, parts: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> MaskCandidates:
        logits = np.concatenate([logits for _, logits, _ in parts])
        masks = [upscaled_masks(logits, self.sam.image_size, embedding.size_hw).masks for _, logits, _ in parts]
        return MaskCandidates(
            Masks.concatenate(masks, embedding.size_hw),
            np.concatenate([scores for _, _, scores in parts]),
            np.repeat([number for number, _, _ in parts], [len(scores) for _, _, scores in parts]),
            logits,
        )
