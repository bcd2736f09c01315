"""SAM as a promptable method: an image is embedded once, then masks are predicted for any number of prompts.

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
from otus.promptable.mask_decoder import ProjectedImage
from otus.promptable.mask_upscaling import upscaled_masks
from otus.promptable.prompt_encoder import PromptBatch
from otus.promptable.sam import Sam, prepare_image, resized_hw
from otus.promptable.text import ClipEncoder
from otus.structures import MaskCandidates, Masks, Prompt
from otus.structures.prompt import BACKGROUND

MASK_LOGIT = 10.0
"""Logit of the pixels inside a mask prompt; outside it is the negative."""


class _ObjectPrompt(NamedTuple):
    """The prompt of one object, in pixels of the padded image: index of its prompt, number of the object, and parts."""

    prompt_index: int
    number: int
    points: Float[np.ndarray, "n 2"]
    labels: np.ndarray
    box: Float[np.ndarray, "4"] | None
    mask: Float32[np.ndarray, "m m"] | None
    text: Float32[np.ndarray, "e"] | None
    multimask: bool


class SamMethod:
    """A promptable method that predicts masks with a SAM model.

    Parameters
    ----------
    sam
        The model. It is not changed.
    preprocess
        Mean and std that its weights were trained with (default: ImageNet's).
    name
        Name of the method in messages and results.
    multimask
        Default of the argument of :meth:`segment`.
    bfloat16
        Run the image encoder in bfloat16.
    text_encoder
        The CLIP that the weights were trained with (default: none, text is not accepted).

    Raises
    ------
    UsageError
        If ``text_encoder`` is given and the weights were not trained with text.

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
        text_encoder: ClipEncoder | None = None,
    ) -> None:
        self.sam = sam
        self.preprocess = preprocess or Preprocess()
        self.name = name
        self.multimask = multimask
        self.bfloat16 = bfloat16
        self.text_encoder = text_encoder
        if text_encoder is not None:
            self._check_trained_with_text()

    @cached_property
    def model_hash(self) -> str:
        """SHA-256 of the weights, which is stored in embeddings to recognise those of other models."""
        return hash_weights(self.sam)

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> Embedding:
        """Return the embedding of an RGB image.

        Raises
        ------
        ShapeError
            If it is not an RGB image of at least one pixel.
        """
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ShapeError(f"image: expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
        prepared = prepare_image(image, self.sam.image_size, preprocess=self.preprocess)
        return Embedding(self.encode(prepared), (image.shape[0], image.shape[1]), hash_image(image), self.model_hash)

    def encode(self, prepared: Float[Tensor, "1 3 s s"]) -> Float32[np.ndarray, "c h w"]:
        """Return the feature map of a padded, normalised image."""
        with inference_mode(self.sam) as sam, self._autocast():
            features: np.ndarray = sam.image_encoder(prepared.to(sam.device))[0].float().cpu().numpy()
        return features

    def segment(
        self,
        embedding: Embedding,
        prompt: Prompt,
        *,
        multimask: bool | None = None,
        mask_logits: Float[np.ndarray, "m m"] | None = None,
    ) -> MaskCandidates:
        """Return the masks for a prompt, the best candidate of each object first.

        If the points mark several objects, each object's points are background points for the others.

        Parameters
        ----------
        embedding
            Result of :meth:`embed`.
        prompt
            Points, a box, a mask and text; box, mask and text only for a single object.
        multimask
            Return all candidates for each object, else the one mask for unambiguous prompts (default: all for a single
            point without box and mask, else one).
        mask_logits
            ``low_resolution_logits`` of one candidate of a previous prediction, to be refined. They hold more than the
            prompt's binary ``mask``.

        Raises
        ------
        UsageError
            If nothing is marked as object, the prompt has parts that this model does not support, or the embedding is of
            another model.
        ShapeError
            If something is marked outside the image, or a mask has another size.
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
        """Return the masks for each prompt, as :meth:`segment` does, in batches.

        Raises
        ------
        UsageError, ShapeError
            As :meth:`segment`; the message names the prompt.
        """
        self.check(embedding)
        multimask = self.multimask if multimask is None else multimask
        objects = [
            object_prompt
            for index, prompt in enumerate(prompts)
            for object_prompt in self._object_prompts(index, prompt, embedding.size_hw, multimask, mask_logits)
        ]
        groups = defaultdict(list)  # indices of objects whose prompts have the same parts, to be decoded in one batch
        for index, object_prompt in enumerate(objects):
            parts = object_prompt.box, object_prompt.mask, object_prompt.text
            groups[len(object_prompt.labels), *(part is None for part in parts)].append(index)
        predictions: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for indices in groups.values():
            for start in range(0, len(indices), self.sam.chunk_size):
                chunk = indices[start : start + self.sam.chunk_size]
                predictions |= zip(chunk, self._decode(embedding, [objects[index] for index in chunk]), strict=True)
        per_prompt: list[list[tuple[int, np.ndarray, np.ndarray]]] = [[] for _ in prompts]
        for index, object_prompt in enumerate(objects):
            per_prompt[object_prompt.prompt_index].append((object_prompt.number, *predictions[index]))
        return [self._candidates(embedding, per_object) for per_object in per_prompt]

    def mask_attention(self, embedding: Embedding, prompt: Prompt) -> Float32[np.ndarray, "masks h w"]:
        """Return where the tokens of the M + 1 masks look in the feature map, for the first object of a prompt.

        Weights of the decoder's last attention from tokens to image, the mean over heads; each map sums to 1 over the padded
        image. The first map is that of the mask for unambiguous prompts.
        """
        first = next(self._object_prompts(0, prompt, embedding.size_hw, None, None))
        with inference_mode(self.sam) as sam:
            inputs = sam.decoder_inputs(self.features(embedding), self._batch([first]))
            attention: np.ndarray = sam.mask_decoder.mask_attention(*inputs)[0].cpu().numpy()
        return attention

    def check(self, embedding: Embedding) -> None:
        """Raise UsageError unless an embedding is of this model."""
        if embedding.model != self.model_hash:
            raise UsageError(
                f"embedding: it is of another model than {self.name} with these weights; embed the image again"
            )

    def features(self, embedding: Embedding) -> Float[Tensor, "c h w"]:
        """Return the feature map on the model's device."""
        return torch.from_numpy(np.array(embedding.features)).to(self.sam.device)

    def project_image(self, embedding: Embedding) -> ProjectedImage:
        """Return the decoder's inputs for an embedding without a mask prompt; they are cached in the embedding."""
        if id(self) not in embedding._derived:
            with inference_mode(self.sam) as sam:
                embedding._derived[id(self)] = sam.project_image(self.features(embedding))
        projected: ProjectedImage = embedding._derived[id(self)]
        return projected

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.sam.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _object_prompts(
        self,
        index: int,
        prompt: Prompt,
        size_hw: tuple[int, int],
        multimask: bool | None,
        mask_logits: Float[np.ndarray, "m m"] | None,
    ) -> Iterator[_ObjectPrompt]:
        """Yield the prompt of each object that a prompt marks."""
        if prompt.strokes or prompt.scribbles is not None:
            raise UsageError(
                f"{self.name}: takes points, a box and a mask, no strokes and no scribbles; give points instead"
            )
        try:
            prompt.check_size(size_hw)
        except ShapeError as error:
            raise ShapeError(f"prompts[{index}]: {error}") from None
        points, labels = np.asarray(prompt.points_xy), np.asarray(prompt.point_labels)
        numbers = np.unique(labels[labels > BACKGROUND]).tolist()
        mask_pixels = prompt.mask if prompt.mask is not None and prompt.mask.any() else None
        single_object = any(part is not None for part in (prompt.box_xyxy, mask_pixels, prompt.text, mask_logits))
        if not numbers and not single_object:
            raise UsageError(
                f"prompts[{index}]: nothing is marked as object for {self.name}; give a point on it, a box or a mask"
            )
        if single_object and len(numbers) > 1:
            raise UsageError(
                f"prompts[{index}]: a box, a mask or text marks one object, but the points mark {len(numbers)}; "
                "give one prompt per object"
            )
        text = None if prompt.text is None else self._text_embedding(prompt.text)
        mask = self._mask_logits(prompt.mask, mask_logits, size_hw)
        scale = self._scale(size_hw)
        box = None if prompt.box_xyxy is None else np.asarray(prompt.box_xyxy) * np.tile(scale, 2)
        for number in numbers or [1]:
            ambiguous = len(labels) == 1 and box is None and mask is None and text is None
            return_all = ambiguous if multimask is None else multimask
            yield _ObjectPrompt(index, number, points * scale, labels == number, box, mask, text, return_all)

    def _check_trained_with_text(self) -> None:
        if not self.sam.prompt_encoder.trained_with_text:
            raise UsageError(
                f"{self.name}: its weights were not trained with text; give points, a box or a mask, or let a detector "
                "find the words (otus.inference.detect_then_prompt)"
            )

    def _text_embedding(self, text: str) -> Float32[np.ndarray, "e"]:
        self._check_trained_with_text()
        if self.text_encoder is None:
            raise UsageError(f"{self.name}: for text, pass the CLIP that it was trained with as text_encoder")
        embedding: Float32[np.ndarray, "e"] = self.text_encoder.embed_texts([text])[0].cpu().numpy()
        return embedding

    def _scale(self, size_hw: tuple[int, int]) -> Float[np.ndarray, "2"]:
        """Return the scale of x and y from the image to the padded image."""
        height, width = resized_hw(size_hw, self.sam.image_size)
        return np.array([width / size_hw[1], height / size_hw[0]])

    def _mask_logits(
        self,
        mask: Bool[np.ndarray, "h w"] | None,
        logits: Float[np.ndarray, "m m"] | None,
        size_hw: tuple[int, int],
    ) -> Float32[np.ndarray, "m m"] | None:
        """Return a mask prompt as logits at the prompt encoder's resolution."""
        side = self.sam.mask_size
        if logits is not None:
            if mask is not None:
                raise UsageError("mask_logits: the prompt has a mask too; give one of them")
            logits = np.asarray(logits, dtype=np.float32)
            if logits.shape != (side, side) or not np.isfinite(logits).all():
                raise ShapeError(
                    f"mask_logits: expected finite values of shape ({side}, {side}) for {self.name}, got {logits.shape}"
                )
            return logits
        if mask is None:
            return None
        height, width = resized_hw(size_hw, self.sam.image_size)
        padded = np.zeros((self.sam.image_size,) * 2, np.uint8)
        pixels = Image.fromarray(mask.astype(np.uint8) * 255)
        padded[:height, :width] = np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR))
        coverage = np.asarray(Image.fromarray(padded).resize((side, side), Image.Resampling.BOX), np.float32) / 255
        return MASK_LOGIT * (2 * coverage - 1)

    def _decode(
        self, embedding: Embedding, objects: Sequence[_ObjectPrompt]
    ) -> list[tuple[Float32[np.ndarray, "masks m m"], Float32[np.ndarray, "masks"]]]:
        """Return logits and scores for prompts of the same parts, the best candidate of each first."""
        image = self.project_image(embedding) if objects[0].mask is None else None
        with inference_mode(self.sam) as sam:
            logits, ious = sam.decode(self.features(embedding), self._batch(objects), image=image)
        predictions = []
        for prompt, prompt_logits, prompt_ious in zip(objects, logits.cpu().numpy(), ious.cpu().numpy(), strict=True):
            order = 1 + np.argsort(-prompt_ious[1:], kind="stable") if prompt.multimask else np.zeros(1, np.int64)
            predictions.append((prompt_logits[order], prompt_ious[order]))
        return predictions

    def _batch(self, objects: Sequence[_ObjectPrompt]) -> PromptBatch:
        """Return prompts of the same parts as tensors."""
        first = objects[0]

        def stacked(arrays: Sequence[Any]) -> Tensor:
            return torch.from_numpy(np.stack(arrays).astype(np.float32)).to(self.sam.device)

        has_points = bool(len(first.labels))
        return PromptBatch(
            points=stacked([prompt.points for prompt in objects]) if has_points else None,
            labels=stacked([prompt.labels for prompt in objects]).long() if has_points else None,
            boxes=None if first.box is None else stacked([prompt.box for prompt in objects]),
            masks=None if first.mask is None else stacked([prompt.mask for prompt in objects])[:, None],
            text=None if first.text is None else stacked([prompt.text for prompt in objects])[:, None],
        )

    def _candidates(
        self, embedding: Embedding, per_object: Sequence[tuple[int, np.ndarray, np.ndarray]]
    ) -> MaskCandidates:
        """Return the masks of the objects of a prompt, given their numbers, logits and scores."""
        masks = [upscaled_masks(logits, self.sam.image_size, embedding.size_hw).masks for _, logits, _ in per_object]
        return MaskCandidates(
            Masks.concatenate(masks, embedding.size_hw),
            np.concatenate([scores for _, _, scores in per_object]),
            np.repeat([number for number, _, _ in per_object], [len(scores) for _, _, scores in per_object]),
            np.concatenate([logits for _, logits, _ in per_object]),
        )
