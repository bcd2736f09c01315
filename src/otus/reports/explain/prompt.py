"""Explain a promptable model on one image: the candidates with their scores, attention, and what each click changed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from otus.errors import UsageError
from otus.interactive.mask_files import as_instances, candidate_records
from otus.promptable.method import SamMethod
from otus.promptable.sam import resized_hw
from otus.reports.explain.figures import attention_overlay, faded, unpadded_size
from otus.reports.page import Figure, Page, Section, numbered
from otus.structures import MaskCandidates, Prompt
from otus.structures.prompt import BACKGROUND
from otus.visualization.drawing import draw

ImageArray = UInt8[np.ndarray, "h w 3"]
_OBJECT, _BACKGROUND = (40, 190, 90), (225, 60, 50)
_WIDTH = 380
"""Width of figures that stand side by side, in CSS pixels."""


@dataclass(frozen=True, eq=False)
class PromptExplanation:
    """What a promptable model predicted for a prompt, part by part; see :func:`explain_prompt`."""

    name: str
    image: ImageArray
    model: str
    prompts: tuple[Prompt, ...]
    candidates: tuple[MaskCandidates, ...]
    attention: Float32[np.ndarray, "masks h w"]

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain prompt --json`` prints."""
        return {
            "file": self.name,
            "width": self.image.shape[1],
            "height": self.image.shape[0],
            "model": self.model,
            "steps": [
                {
                    "prompt": prompt.to_json(),
                    "added": int((after & ~before).sum()),
                    "removed": int((before & ~after).sum()),
                    "candidates": candidate_records(candidates),
                }
                for prompt, candidates, (before, after) in zip(
                    self.prompts, self.candidates, self._changes(), strict=True
                )
            ],
        }

    def page(self) -> Page:
        """Return the HTML page."""
        subtitle = f"{self.image.shape[1]} x {self.image.shape[0]} pixels, {len(self.prompts)} prompts"
        return Page(f"{self.model}: {self.name}", subtitle, tuple(numbered(self._sections())))

    def _sections(self) -> Iterator[Section]:
        yield Section(
            "The image and the prompt",
            "Green points are on the object, red ones on background.",
            [Figure.of(self._marked(self.prompts[-1], self.image), "the whole prompt")],
        )
        first = self.candidates[0]
        yield Section(
            "The candidates for the first prompt",
            "One point may mean a part, an object or a group, so the model predicts several masks, and of each its IoU with "
            "what is meant. The mask with the highest predicted IoU is shown first.",
            [
                Figure.of(
                    self._marked(self.prompts[0], draw(self.image, as_instances(first)[[i]])),
                    f"score {score:.3f}",
                    width=_WIDTH,
                )
                for i, score in enumerate(first.scores)
            ],
            [{"score": round(record["score"], 3), "pixels": record["area"]} for record in candidate_records(first)],
        )
        yield Section(
            "Attention",
            "Where the token of each mask looks in the image: weights of the decoder's last attention from tokens to image, "
            "the mean over heads. The first token is the one for prompts that are not ambiguous.",
            [
                Figure.of(
                    attention_overlay(self.image, attention),
                    "not ambiguous" if i == 0 else f"candidate token {i}",
                    width=_WIDTH,
                )
                for i, attention in enumerate(self.attention)
            ],
        )
        if len(self.prompts) > 1:
            yield Section(
                "What each further click changed",
                "Each prompt has one point more than the last. Green was added to the best mask, red was removed.",
                [
                    Figure.of(
                        self._marked(prompt, self._changed(before, after)),
                        f"prompt {number}: score {candidates.scores[0]:.3f}",
                        width=_WIDTH,
                    )
                    for number, (prompt, candidates, (before, after)) in enumerate(
                        zip(self.prompts, self.candidates, self._changes(), strict=True), start=1
                    )
                    if number > 1
                ],
                [
                    {"prompt": number, "added": step["added"], "removed": step["removed"]}
                    for number, step in enumerate(self.document()["steps"], start=1)
                    if number > 1
                ],
            )
        yield Section(
            "The mask",
            "The best candidate for the whole prompt.",
            [
                Figure.of(
                    draw(self.image, as_instances(self.candidates[-1])[[0]]), f"{self.candidates[-1].scores[0]:.3f}"
                )
            ],
        )

    def _changes(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the best mask before and after each prompt."""
        before = np.zeros(self.image.shape[:2], bool)
        for candidates in self.candidates:
            after = candidates.masks[[0]].dense()[0]
            yield before, after
            before = after

    def _changed(self, before: np.ndarray, after: np.ndarray) -> ImageArray:
        pale = faded(self.image)
        for where, colour in (
            (before & after, (90, 120, 200)),
            (after & ~before, _OBJECT),
            (before & ~after, _BACKGROUND),
        ):
            pale[where] = (0.4 * pale[where] + 0.6 * np.array(colour)).astype(np.uint8)
        return pale

    def _marked(self, prompt: Prompt, image: ImageArray) -> ImageArray:
        """Draw the points and the box of a prompt on an image."""
        canvas = Image.fromarray(image.copy())
        pen = ImageDraw.Draw(canvas)
        radius = max(3.0, max(canvas.size) / 90)
        if prompt.box_xyxy is not None:
            pen.rectangle(tuple(np.asarray(prompt.box_xyxy).tolist()), outline=_OBJECT, width=max(1, int(radius / 2)))
        for (x, y), label in zip(prompt.points_xy, prompt.point_labels, strict=True):
            colour = _BACKGROUND if label == BACKGROUND else _OBJECT
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="white", width=2)
        return np.asarray(canvas)


def explain_prompt(image: ImageArray, prompt: Prompt, *, name: str, method: SamMethod) -> PromptExplanation:
    """Segment an image with a prompt's box, or its points up to the first on the object, then with one point more each.

    Raises
    ------
    UsageError, ShapeError
        As :meth:`~otus.promptable.method.SamMethod.segment`, or if the prompt marks several objects.
    """
    labels = np.asarray(prompt.point_labels)
    if len(marked := np.unique(labels[labels > BACKGROUND])) > 1:
        raise UsageError(f"the prompt marks {len(marked)} objects; give the points of one object")
    embedding = method.embed(image)
    alone = prompt.box_xyxy is not None or prompt.mask is not None  # enough without a point
    first = 0 if alone or not len(labels) else int(np.argmax(labels > BACKGROUND)) + 1
    prompts = tuple(
        replace(prompt, points_xy=prompt.points_xy[:count], point_labels=prompt.point_labels[:count])
        for count in range(first, len(labels) + 1)
    )
    candidates = tuple(method.segment(embedding, part) for part in prompts)
    height, width = resized_hw(embedding.size_hw, method.sam.image_size)
    attention = method.mask_attention(embedding, prompts[0])
    rows, columns = unpadded_size(attention.shape[1:], (height, width), (method.sam.image_size,) * 2)
    return PromptExplanation(name, image, method.name, prompts, candidates, attention[:, :rows, :columns])
