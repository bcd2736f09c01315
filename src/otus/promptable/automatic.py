"""Automatic mask generation: a grid of point prompts, whose masks are filtered by quality and stability, then by NMS.

Shape shorthand: N masks, P points, H x W the image, m x m logits.

Paper: "Segment Anything" (Kirillov et al., ICCV 2023, arXiv:2304.02643), appendix B. Parameters, their defaults and the
records are those of the official ``SamAutomaticMaskGenerator`` (github.com/facebookresearch/segment-anything, Apache-2.0),
including the width of boxes: x2 is the last pixel's index, so it is one less than the number of columns. Departures, none
of which changes a record: the decoder does not upscale masks whose predicted IoU is too low, and masks are run-length
encoded at once, so that none is in memory pixel by pixel.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torchvision.ops import batched_nms

from otus.errors import UsageError
from otus.parts.inference_mode import inference_mode
from otus.promptable.embedding import Embedding
from otus.promptable.mask_upscaling import upscaled_masks
from otus.promptable.method import SamMethod
from otus.promptable.prompt_encoder import PromptBatch
from otus.promptable.sam import resized_hw
from otus.structures import Masks
from otus.structures.masks import run_lengths

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
_BORDER_DISTANCE = 20  # in pixels: boxes this near to a border of the crop are taken to be cut by it


@dataclass(frozen=True, eq=False)
class AutomaticMasks:
    """The masks of one image.

    Parameters
    ----------
    masks
        N masks, as RLE.
    boxes_xyxy
        (N, 4) boxes, in which x2, y2 are the last pixel's indices (not one more, as elsewhere).
    predicted_ious, stability_scores
        (N,) predicted IoUs and stability scores.
    points_xy
        (N, 2) point prompt of each mask.
    crops_xyxy
        (N, 4) crop of the image in which each mask was predicted.
    """

    masks: Masks
    boxes_xyxy: Int[np.ndarray, "n 4"]
    predicted_ious: Float[np.ndarray, "n"]
    stability_scores: Float[np.ndarray, "n"]
    points_xy: Float[np.ndarray, "n 2"]
    crops_xyxy: Int[np.ndarray, "n 4"]

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: Any) -> "AutomaticMasks":
        return AutomaticMasks(*(column[index] for column in vars(self).values()))

    @classmethod
    def concatenate(cls, parts: Sequence["AutomaticMasks"], size_hw: tuple[int, int]) -> "AutomaticMasks":
        """Return the masks of all parts, in order."""
        masks = Masks.concatenate([part.masks for part in parts], size_hw)
        columns = [list(vars(part).values())[1:] for part in parts]
        return cls(masks, *(np.concatenate(column) for column in zip(*columns, strict=True)))

    def records(self, output_mode: str = "coco_rle") -> Iterator[dict[str, Any]]:
        """Yield the record of each mask, in the format of the official ``SamAutomaticMaskGenerator.generate``.

        Parameters
        ----------
        output_mode
            Format of ``segmentation``: ``binary_mask``, ``uncompressed_rle`` or ``coco_rle``.
        """
        corners = (self.boxes_xyxy, self.crops_xyxy)
        bboxes, crops = (np.hstack([box[:, :2], box[:, 2:] - box[:, :2]]).tolist() for box in corners)
        for index, area in enumerate(self.masks.area().tolist()):
            mask = self.masks[index : index + 1]
            rle = mask.rle_json()[0]
            segmentation: Any = rle
            if output_mode == "binary_mask":
                segmentation = mask.dense()[0]
            elif output_mode == "uncompressed_rle":
                segmentation = {"size": rle["size"], "counts": run_lengths(str(rle["counts"]).encode()).tolist()}
            yield {
                "segmentation": segmentation,
                "area": int(area),
                "bbox": bboxes[index],
                "predicted_iou": float(self.predicted_ious[index]),
                "point_coords": [self.points_xy[index].tolist()],
                "stability_score": float(self.stability_scores[index]),
                "crop_box": crops[index],
            }


class SamAutomaticMaskGenerator:
    """Generate masks for everything in an image.

    Parameters
    ----------
    method
        The model, as a promptable method.
    points_per_side
        Number of points along each side of the grid; None if ``point_grids`` is given.
    points_per_batch
        Number of points whose masks are in memory at once.
    pred_iou_thresh
        Masks with a predicted IoU of at most this are removed.
    stability_score_thresh, stability_score_offset
        Masks with a stability score below the threshold are removed. The score is the IoU of the masks at the logits'
        threshold plus and minus the offset.
    box_nms_thresh
        IoU threshold of the NMS of boxes within a crop, by predicted IoU.
    crop_n_layers
        Number of layers of crops that are searched in addition to the image; layer i has 2^i by 2^i crops.
    crop_nms_thresh
        IoU threshold of the NMS of boxes between crops; masks of smaller crops are preferred.
    crop_overlap_ratio
        Overlap of the first layer's crops, as a fraction of the image's shorter side. It halves in each further layer.
    crop_n_points_downscale_factor
        Factor by which ``points_per_side`` is divided in each further layer.
    point_grids
        Points (P, 2) for each layer, in [0, 1] relative to the crop, instead of ``points_per_side``.
    min_mask_region_area
        Components and holes of fewer pixels are removed (default: none are).
    output_mode
        Format of the records' ``segmentation``.

    Raises
    ------
    UsageError
        If a parameter is invalid.

    Examples
    --------
    >>> records = SamAutomaticMaskGenerator(method).generate(image)  # doctest: +SKIP
    """

    def __init__(
        self,
        method: SamMethod,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[Float[np.ndarray, "p 2"]] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        if (points_per_side is None) == (point_grids is None):
            raise UsageError("points_per_side, point_grids: expected one of them, got both or none")
        for name, value, minimum in (
            ("points_per_side", points_per_side, 1),
            ("points_per_batch", points_per_batch, 1),
            ("crop_n_layers", crop_n_layers, 0),
            ("crop_n_points_downscale_factor", crop_n_points_downscale_factor, 1),
            ("min_mask_region_area", min_mask_region_area, 0),
        ):
            if value is not None and value < minimum:
                raise UsageError(f"{name}: expected {minimum} or more, got {value}")
        if output_mode not in OUTPUT_MODES:
            raise UsageError(f"output_mode: expected one of {', '.join(OUTPUT_MODES)}, got {output_mode!r}")
        if points_per_side is not None:
            sides = [int(points_per_side / crop_n_points_downscale_factor**layer) for layer in range(crop_n_layers + 1)]
            point_grids = [point_grid(side) for side in sides]
        assert point_grids is not None
        if len(point_grids) <= crop_n_layers:
            raise UsageError(f"point_grids: expected one per layer, {crop_n_layers + 1}, got {len(point_grids)}")
        if not len(point_grids[0]):
            raise UsageError("point_grids: expected points for the image itself, the first layer, got none")
        self.method = method
        self.point_grids = point_grids
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode

    def generate(self, image: UInt8[np.ndarray, "h w 3"]) -> list[dict[str, Any]]:
        """Return the record of each mask of an RGB image, see :meth:`AutomaticMasks.records`."""
        return list(self.masks(image).records(self.output_mode))

    def masks(self, image: UInt8[np.ndarray, "h w 3"]) -> AutomaticMasks:
        """Return the masks of an RGB image as one value."""
        size_hw = image.shape[0], image.shape[1]
        crops = crop_boxes(size_hw, self.crop_n_layers, self.crop_overlap_ratio)
        # Crops of an image of few pixels may be empty, and so may the grids of further layers.
        crops = [(box, i) for box, i in crops if box[0] < box[2] and box[1] < box[3] and len(self.point_grids[i])]
        masks = AutomaticMasks.concatenate([self._crop_masks(image, crop, layer) for crop, layer in crops], size_hw)
        if len(crops) > 1:
            areas = np.prod(masks.crops_xyxy[:, 2:] - masks.crops_xyxy[:, :2], axis=1)
            masks = masks[keep_by_nms(masks.boxes_xyxy, 1 / areas.astype(np.float32), self.crop_nms_thresh)]
        if self.min_mask_region_area > 0:
            threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
            masks = without_small_regions(masks, self.min_mask_region_area, iou_threshold=threshold)
        return masks

    def _crop_masks(
        self, image: UInt8[np.ndarray, "h w 3"], crop: tuple[int, int, int, int], layer: int
    ) -> AutomaticMasks:
        x1, y1, x2, y2 = crop
        size_hw = image.shape[0], image.shape[1]
        embedding = self.method.embed(image[y1:y2, x1:x2])
        points = self.point_grids[layer] * [x2 - x1, y2 - y1]
        parts = [
            self._point_masks(embedding, points[start : start + self.points_per_batch], crop, size_hw)
            for start in range(0, len(points), self.points_per_batch)
        ]
        masks = AutomaticMasks.concatenate(parts, size_hw)
        return masks[keep_by_nms(masks.boxes_xyxy - [x1, y1, x1, y1], masks.predicted_ious, self.box_nms_thresh)]

    def _point_masks(
        self,
        embedding: Embedding,
        points: Float[np.ndarray, "p 2"],
        crop: tuple[int, int, int, int],
        image_hw: tuple[int, int],
    ) -> AutomaticMasks:
        """Return the masks of points that pass both thresholds and are not cut by the crop's border."""
        sam, (x1, y1) = self.method.sam, crop[:2]
        height, width = resized_hw(embedding.size_hw, sam.image_size)
        scaled = points * (width / embedding.size_hw[1], height / embedding.size_hw[0])
        coords = torch.from_numpy(scaled).to(sam.device, torch.float32)[:, None]
        prompts = PromptBatch(coords, torch.ones(coords.shape[:2], dtype=torch.long, device=sam.device))
        with inference_mode(sam) as model:
            logits, ious, prompt_indices = model.decode_above(
                self.method.features(embedding),
                prompts,
                self.pred_iou_thresh,
                image=self.method.project_image(embedding),
            )
        upscaled = upscaled_masks(
            logits.cpu().numpy(),
            sam.image_size,
            embedding.size_hw,
            offset=self.stability_score_offset,
            crop=(y1, x1, image_hw),
        )
        boxes = upscaled.boxes_xyxy - np.where(upscaled.areas[:, None] > 0, [0, 0, 1, 1], 0) + [x1, y1, x1, y1]
        keep = ~cut_by_crop(boxes, crop, image_hw)
        if self.stability_score_thresh > 0:
            keep &= upscaled.stability >= self.stability_score_thresh
        masks = AutomaticMasks(
            upscaled.masks,
            boxes,
            ious.cpu().numpy(),
            upscaled.stability,
            points[prompt_indices.cpu().numpy()] + [x1, y1],
            np.tile(crop, (len(boxes), 1)),
        )
        return masks[keep]


def point_grid(side: int) -> Float[np.ndarray, "p 2"]:
    """Return ``side`` x ``side`` evenly spaced points (x, y) in [0, 1], relative to the image.

    >>> point_grid(2).tolist()
    [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    if side < 1:
        return np.zeros((0, 2))
    offset = 1 / (2 * side)
    coordinates = np.linspace(offset, 1 - offset, side)
    return np.stack(np.meshgrid(coordinates, coordinates), axis=-1).reshape(-1, 2)


def crop_boxes(
    size_hw: tuple[int, int], layers: int, overlap_ratio: float
) -> list[tuple[tuple[int, int, int, int], int]]:
    """Return the xyxy boxes of an image's crops and their layers; the first is the image itself, layer 0.

    >>> crop_boxes((60, 80), 1, 0.5)[1:3]
    [((0, 0, 55, 45), 1), ((0, 15, 55, 60), 1)]
    """
    height, width = size_hw
    boxes = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(size_hw) * (2 / count))
        crop_width, crop_height = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        starts = ([int((side - overlap) * i) for i in range(count)] for side in (crop_width, crop_height))
        for x, y in product(*starts):
            boxes.append(((x, y, min(x + crop_width, width), min(y + crop_height, height)), layer))
    return boxes


def cut_by_crop(
    boxes_xyxy: Int[np.ndarray, "n 4"], crop: tuple[int, int, int, int], image_hw: tuple[int, int]
) -> Bool[np.ndarray, "n"]:
    """Return which boxes are near a border of the crop that is not a border of the image."""
    near_crop = np.abs(boxes_xyxy - np.array(crop)) <= _BORDER_DISTANCE
    near_image = np.abs(boxes_xyxy - np.array([0, 0, image_hw[1], image_hw[0]])) <= _BORDER_DISTANCE
    return (near_crop & ~near_image).any(axis=1)


def keep_by_nms(
    boxes_xyxy: Int[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], iou_threshold: float
) -> Int[np.ndarray, "kept"]:
    """Return the indices of the boxes kept by NMS, highest score first; ties are in torchvision's order."""
    boxes = torch.from_numpy(boxes_xyxy.astype(np.float32))
    return batched_nms(boxes, torch.from_numpy(scores), torch.zeros(len(boxes)), iou_threshold).numpy()


def without_small_regions(masks: AutomaticMasks, min_area: int, *, iou_threshold: float) -> AutomaticMasks:
    """Fill small holes and remove small components, then apply NMS, which prefers masks that were not changed."""
    counts, boxes = [], masks.boxes_xyxy.copy()
    unchanged = np.ones(len(masks), np.float32)
    for index, mask in enumerate(masks.masks):
        filled, holes = remove_small_regions(mask, min_area, mode="holes")
        cleaned, islands = remove_small_regions(filled, min_area, mode="islands")
        encoded = Masks.from_dense(cleaned[None])
        counts.append(encoded.rle()[0]["counts"])
        if holes or islands:
            unchanged[index] = 0
        box = encoded.boxes_xyxy()[0].astype(np.int64)
        boxes[index] = box - ([0, 0, 1, 1] if cleaned.any() else 0)
    keep = keep_by_nms(boxes, unchanged, iou_threshold)
    cleaned_masks = Masks.from_rle(counts, masks.masks.size_hw)  # type: ignore[arg-type]
    return replace(masks, masks=cleaned_masks, boxes_xyxy=boxes)[keep]


def remove_small_regions(
    mask: Bool[np.ndarray, "h w"], min_area: int, *, mode: str
) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """Return a mask without its small ``holes`` or ``islands``, and whether it had any; the largest island is kept."""
    from scipy.ndimage import label

    holes = mode == "holes"
    regions, _ = label(mask ^ holes, np.ones((3, 3)))
    sizes = np.bincount(regions.ravel())[1:]
    small = sizes < min_area
    if not small.any():
        return mask, False
    if holes:
        return mask | np.concatenate([[False], small])[regions], True
    if small.all():
        small[sizes.argmax()] = False
    return np.concatenate([[False], ~small])[regions], True
