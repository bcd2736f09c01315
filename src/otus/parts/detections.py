"""Detections as tensors, per image or of a whole batch, and their conversion to numpy values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from otus.parts.boxes.nms import nms_per_image
from otus.parts.postprocess import Postprocess
from otus.structures import Categories, Instances, Masks, oriented
from otus.structures.boxes import as_boxes


@dataclass(frozen=True)
class Detections:
    """Detected objects of one image as tensors; boxes xyxy or xywhr.

    ``origins`` are the indices of the regions, anchors, cell boxes or queries that predicted them.
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
    """Return ``boxes``, ``scores``, ``labels`` and ``image_index`` of all images, concatenated: the outputs of export."""
    counts = torch.tensor([len(of_image) for of_image in detections], device=detections[0].labels.device)
    tensors = {"image_index": torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)}
    return tensors | {
        name: torch.cat([getattr(of_image, name) for of_image in detections]) for name in ("boxes", "scores", "labels")
    }


def postprocess_batch(
    candidates: Detections,
    image_index: Int[Tensor, "n"],
    postprocess: Postprocess,
    *,
    num_images: int,
    padded_hw: tuple[int, int],
) -> dict[str, Tensor]:
    """Apply NMS and the limit of ``postprocess`` to the candidates of a batch; return tensors as :func:`as_tensors` does.

    Parameters
    ----------
    candidates
        Candidates of all images, above their score thresholds.
    image_index
        Index of each candidate's image.
    postprocess
        NMS IoU threshold, and maximum number of detections per image.
    num_images
        Images of the batch.
    padded_hw
        Size of the batch, which the boxes lie in.
    """
    kept = nms_per_image(
        candidates.boxes,
        candidates.scores,
        candidates.labels,
        image_index,
        num_images=num_images,
        padded_hw=padded_hw,
        iou_threshold=postprocess.nms_iou,
        limit=postprocess.max_detections,
    )
    detections = candidates[kept]
    return {
        "image_index": image_index[kept],
        "boxes": detections.boxes,
        "scores": detections.scores,
        "labels": detections.labels,
    }


def as_instances(
    detections: Sequence[Detections],
    sizes_hw: Sequence[tuple[int, int]],
    categories: Categories,
    *,
    masks: Sequence[Float[Tensor, "_ h w"]] | None = None,
    keypoints: Sequence[Float[Tensor, "_ k 4"]] | None = None,
) -> list[Instances]:
    """Convert the detections of each image to numpy values, in the frame of that image.

    Oriented boxes get their enclosing upright boxes, clipped to the image.

    Parameters
    ----------
    detections
        Detections of each image.
    sizes_hw
        Height and width of each image without padding.
    categories
        The categories that labels index.
    masks
        Mask probabilities of each image's objects, one map per object, stretched over its box.
    keypoints
        Keypoints of each image's objects: x, y, visibility, score.
    """
    instances = []
    for i, (of_image, size_hw) in enumerate(zip(detections, sizes_hw, strict=True)):
        boxes = _numpy(of_image.boxes)
        boxes_xywhr = None
        if boxes.shape[1] == 5:
            boxes_xywhr, limit = boxes, np.array([size_hw[1], size_hw[0]] * 2)
            boxes = as_boxes(oriented.enclosing_boxes(boxes_xywhr).clip(0, limit).astype(np.float32))
        points = None if keypoints is None else _numpy(keypoints[i])
        instances.append(
            Instances(
                boxes_xyxy=boxes,
                labels=_numpy(of_image.labels),
                size_hw=size_hw,
                categories=categories,
                scores=_numpy(of_image.scores),
                masks=None if masks is None else Masks.from_probabilities(_numpy(masks[i]), boxes, size_hw),
                keypoints=None if points is None else points[..., :3],
                keypoint_scores=None if points is None else points[..., 3],
                oriented_boxes_xywhr=boxes_xywhr,
            )
        )
    return instances


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
