"""A detector's boxes as prompts: masks for the detections of any detector, and masks of what words name.

Words name a category of the detector, after modifiers that choose one of its detections: ``dog``, ``left dog``, ``the
largest dining table``. No text encoder is needed, but no other words are known.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
from jaxtyping import Float, UInt8

from otus.errors import UsageError, did_you_mean
from otus.structures import Categories, Instances, MaskCandidates, Masks, Prompt, PromptableMethod
from otus.structures.prompt import MAX_OBJECTS, EmbeddingT

if TYPE_CHECKING:
    from otus.inference.predictor import Predictor

MODIFIERS = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1), "smallest": (2, -1), "largest": (2, 1)}
"""Words that choose one detection: the criterion (x or y of the box's centre, or its area) and the sign that is maximal."""
_ARTICLES = ("a", "an", "the")


def segment_boxes(
    method: PromptableMethod[EmbeddingT],
    embedding: EmbeddingT,
    boxes_xyxy: Float[np.ndarray, "n 4"],
    size_hw: tuple[int, int],
) -> list[MaskCandidates]:
    """Return the candidates of a promptable method for each box of an image; none for a box without area in the image."""
    clipped = np.clip(boxes_xyxy, 0, np.tile(size_hw[::-1], 2))
    return [
        method.segment(embedding, Prompt(box_xyxy=box))
        if (box[2:] > box[:2]).all()
        else MaskCandidates.concatenate([], size_hw)
        for box in clipped
    ]


def refine_masks(method: PromptableMethod[Any], image: UInt8[np.ndarray, "h w 3"], instances: Instances) -> Instances:
    """Return the same detections, with the masks that a promptable method predicts for their boxes.

    Boxes, scores, order and everything else are kept. The mask of a box without area in the image is empty.

    Parameters
    ----------
    method
        A method that takes boxes, e.g. :class:`~otus.interactive.grab_cut.GrabCut` or the result of
        :func:`otus.inference.promptable.load_method`.
    image
        The image, or a smaller version of it, on which the method then works.
    instances
        Detections, in pixels of the image at full size.
    """
    if not len(instances):
        return replace(instances, masks=Masks.empty(instances.size_hw))
    size_hw = (image.shape[0], image.shape[1])
    boxes = instances.resized(size_hw).boxes_xyxy
    candidates = segment_boxes(method, method.embed(image), boxes, size_hw)
    masks = [Masks.from_dense(found.best()[None]).resized(instances.size_hw).to_rle() for found in candidates]
    return replace(instances, masks=Masks.concatenate(masks, instances.size_hw))


@dataclass(frozen=True)
class Description:
    """What words describe: a category, and modifiers that choose one object of it.

    Parameters
    ----------
    label
        Class index of the category.
    modifiers
        Names in :data:`MODIFIERS` (default: none, all objects of the category are meant).

    Examples
    --------
    >>> Description.parse("the left dog", Categories(("cat", "dog")))
    Description(label=1, modifiers=('left',))
    """

    label: int
    modifiers: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, categories: Categories) -> "Description":
        """Parse modifiers followed by the name of a category; articles and case are ignored.

        Raises
        ------
        UsageError
            If the category or a modifier is unknown, or two modifiers are of one criterion.
        """
        words = [word for word in text.casefold().split() if word not in _ARTICLES]
        labels = {name.casefold().replace(" ", ""): label for label, name in enumerate(categories)}
        start = next((i for i in range(len(words)) if "".join(words[i:]) in labels), None)
        if start is None:
            name = next((" ".join(words[i:]) for i, word in enumerate(words) if word not in MODIFIERS), "")
            suggestion = did_you_mean(name, categories) or did_you_mean(name.split(" ")[-1], categories)
            known = f"it knows {', '.join(categories)}{suggestion}"
            raise UsageError(f"text: expected a category that the detector knows, got {text!r}; {known}")
        modifiers = tuple(words[:start])
        for word in modifiers:
            if word not in MODIFIERS:
                known = f"{', '.join(MODIFIERS)}{did_you_mean(word, MODIFIERS)}"
                raise UsageError(f"text: {word!r} in {text!r} is not known; before a category stand {known}")
        if len({MODIFIERS[word][0] for word in modifiers}) < len(modifiers):
            raise UsageError(f"text: {' and '.join(modifiers)} in {text!r} do not go together; leave one out")
        return cls(labels["".join(words[start:])], modifiers)

    def select(self, detections: Instances) -> Instances:
        """Return the described detections: all of the category by descending score, or with modifiers a single one.

        Several modifiers count equally, each relative to the size of the image.
        """
        found = detections[detections.labels == self.label]
        scores = np.zeros(len(found)) if found.scores is None else found.scores
        if not self.modifiers or not len(found):
            return found[np.argsort(-scores, kind="stable")]
        height, width = found.size_hw
        x1, y1, x2, y2 = found.boxes_xyxy.T
        criteria = (x1 + x2) / (2 * width), (y1 + y2) / (2 * height), (x2 - x1) * (y2 - y1) / (width * height)
        chosen = sum(sign * criteria[index] for index, sign in (MODIFIERS[word] for word in self.modifiers))
        return found[int(np.argmax(chosen))]


@dataclass(frozen=True, eq=False)
class DetectedEmbedding(Generic[EmbeddingT]):
    """Embedding of a promptable method, and the detections in the image."""

    embedding: EmbeddingT
    detections: Instances


class DetectThenPrompt(Generic[EmbeddingT]):
    """A promptable method that answers words: the boxes of a detector prompt another promptable method.

    Parameters
    ----------
    detector
        A detector, whose categories are the words that are known.
    method
        A method that takes boxes. It also answers the prompts without words.

    Raises
    ------
    UsageError
        If the model does not detect objects.

    Examples
    --------
    >>> method = DetectThenPrompt(otus.load(), GrabCut())  # doctest: +SKIP
    >>> method.segment(method.embed(image), Prompt(text="left dog")).best()  # doctest: +SKIP
    """

    def __init__(self, detector: "Predictor", method: PromptableMethod[EmbeddingT]) -> None:
        if detector.task.result_type is not Instances:
            raise UsageError(
                f"detector: {detector.name} predicts {detector.task.predicts}, not objects; name a detector"
            )
        self.detector = detector
        self.method = method
        self.name = method.name

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> DetectedEmbedding[EmbeddingT]:
        """Detect the objects, and compute the embedding of the other method."""
        return DetectedEmbedding(self.method.embed(image), self.detector.predict(image)[0].instances)

    def segment(self, embedding: DetectedEmbedding[EmbeddingT], prompt: Prompt) -> MaskCandidates:
        """Return the masks of what the text describes, the highest-scoring detection as object 1; none if none is found.

        Raises
        ------
        UsageError
            If the words are not known, or the prompt has other parts too.
        """
        if prompt.text is None:
            return self.method.segment(embedding.embedding, prompt)
        others = len(prompt.points_xy), len(prompt.strokes)
        if any(others) or any(part is not None for part in (prompt.scribbles, prompt.box_xyxy, prompt.mask)):
            raise UsageError("text: where a detector finds the words, they stand alone; leave points, box and mask out")
        detections = embedding.detections
        described = Description.parse(prompt.text, self.detector.categories).select(detections)[:MAX_OBJECTS]
        parts = segment_boxes(self.method, embedding.embedding, described.boxes_xyxy, detections.size_hw)
        numbered = [part.numbered(number) for number, part in enumerate(parts, start=1)]
        return MaskCandidates.concatenate(numbered, detections.size_hw)
