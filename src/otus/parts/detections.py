"""Detections as a batch leaves them, and as numpy values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from otus.parts.boxes.nms import nms_of_batch
from otus.parts.postprocess import Postprocess
from otus.structures import Categories, Instances, Masks, oriented
from otus.structures.boxes import as_boxes


@dataclass(frozen=True)
class Detections:
    """Objects of one image as tensors; boxes xyxy or xywhr.

    ``origins`` says of which region, anchor, box of a cell or query each was made.
    """

    boxes: Float[Tensor, "n _"]
    scores: Float[Tensor, "n"]
    labels: Int[Tensor, "n"]
    origins: Int[Tensor, "n"]

    def __getitem__(self, index: Tensor) -> "Detections":
        return Detections(self.boxes[index], self.scores[index], self.labels[index], self.origins[index])

    def __len__(self) -> int:
        return len(self.boxes)


def as_tensors(detections: Sequence[Detections]) -> dict[str, Tensor]:
    """``boxes``, ``scores``, ``labels`` of all images, and ``image_index`` saying of which each is: what export sees."""
    counts = torch.tensor([len(one) for one in detections], device=detections[0].labels.device)
    answer = {"image_index": torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)}
    return answer | {
        name: torch.cat([getattr(one, name) for one in detections]) for name in ("boxes", "scores", "labels")
    }


def keep_of_batch(
    candidates: Detections,
    image_index: Int[Tensor, "n"],
    postprocess: Postprocess,
    *,
    num_images: int,
    padded_hw: tuple[int, int],
) -> dict[str, Tensor]:
    """Return as of :func:`as_tensors` what ``postprocess`` keeps of the candidates of a batch.

    Parameters
    ----------
    candidates, image_index
        Those of all images, and the index of each one's image.
    """
    kept = nms_of_batch(
        candidates.boxes,
        candidates.scores,
        candidates.labels,
        image_index,
        num_images=num_images,
        padded_hw=padded_hw,
        iou_threshold=postprocess.nms_iou,
        limit=postprocess.max_detections,
    )
    found = candidates[kept]
    return {"image_index": image_index[kept], "boxes": found.boxes, "scores": found.scores, "labels": found.labels}


def as_instances(
    detections: Sequence[Detections],
    sizes_hw: Sequence[tuple[int, int]],
    categories: Categories,
    *,
    masks: Sequence[Float[Tensor, "_ h w"]] | None = None,
    keypoints: Sequence[Float[Tensor, "_ k 4"]] | None = None,
) -> list[Instances]:
    """The detections of each image as numpy values, in its own frame.

    Oriented boxes come with the boxes around them, inside the image; ``masks`` are probabilities that cover their boxes.
    """
    values = []
    for i, (found, size_hw) in enumerate(zip(detections, sizes_hw, strict=True)):
        boxes = _numpy(found.boxes)
        turned = None
        if boxes.shape[1] == 5:
            turned, limit = boxes, np.array([size_hw[1], size_hw[0]] * 2)
            boxes = as_boxes(oriented.enclosing_boxes(turned).clip(0, limit).astype(np.float32))
        points = None if keypoints is None else _numpy(keypoints[i])
        values.append(
            Instances(
                boxes_xyxy=boxes,
                labels=_numpy(found.labels),
                size_hw=size_hw,
                categories=categories,
                scores=_numpy(found.scores),
                masks=None if masks is None else Masks.from_probabilities(_numpy(masks[i]), boxes, size_hw),
                keypoints=None if points is None else points[..., :3],
                keypoint_scores=None if points is None else points[..., 3],
                oriented_boxes_xywhr=turned,
            )
        )
    return values


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
