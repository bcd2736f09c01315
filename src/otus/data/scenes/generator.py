"""Synthetic scenes: textured shapes over sky, water, grass or sand, occluding one another, with complete ground truth.

The same seed gives the same scenes. Shape shorthand: H x W an image, N objects, K keypoints.

- Later objects occlude earlier ones; at least a fifth of every object is visible. The image's border clips objects.
- A pixel belongs to an object that covers at least half of it; only the image is anti-aliased.
- Amodal masks are clipped only by the border; amodal boxes enclose them. Oriented boxes enclose the whole shape and may
  extend beyond the image.
"""

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from otus.data.sample import Sample
from otus.data.scenes.shapes import KITE, PATTERNS, SHAPES, Pose, Shape, coverage, window
from otus.structures import Categories, Instances, Masks, PanopticMap, Segment, SemanticMap

_STUFF = {  # RGB colour, height and width of a grain in pixels, contrast
    "sky": ((0.50, 0.68, 0.90), 30, 60, 0.10),
    "grass": ((0.36, 0.52, 0.22), 7, 2, 0.11),
    "water": ((0.16, 0.42, 0.55), 3, 26, 0.10),
    "sand": ((0.80, 0.70, 0.50), 2, 2, 0.06),
}
THING_CATEGORIES = Categories(tuple(SHAPES), ids=tuple(range(1, len(SHAPES) + 1)), keypoints=(("kite", KITE),))
"""The categories of objects in scenes."""
ALL_CATEGORIES = Categories(
    (*SHAPES, *_STUFF),
    ids=tuple(range(1, len(SHAPES) + len(_STUFF) + 1)),
    is_thing=(True,) * len(SHAPES) + (False,) * len(_STUFF),
    keypoints=(("kite", KITE),),
)
"""The categories of pixels in scenes: those of objects, with the same labels, then sky, grass, water and sand."""

_MIN_VISIBLE_FRACTION = 0.2
_MIN_PIXELS = 24


@dataclass(frozen=True)
class Scenes:
    """``count`` synthetic scenes of size ``size_hw``, each with ``min_objects`` to ``max_objects`` objects.

    The size of an object is a fraction of the scene's shorter side, drawn log-uniformly from the range
    ``object_sizes``. An object is left out if it does not fit in 8 attempts.

    Examples
    --------
    >>> scenes = Scenes(10, size_hw=(60, 80), seed=3)
    >>> sample = scenes.scene(0)
    >>> len(scenes), sample.image.shape, sample.instances.masks.size_hw
    (10, (60, 80, 3), (60, 80))
    """

    count: int
    size_hw: tuple[int, int] = field(default=(240, 320), kw_only=True)
    seed: int = field(default=0, kw_only=True)
    min_objects: int = field(default=1, kw_only=True)
    max_objects: int = field(default=8, kw_only=True)
    object_sizes: tuple[float, float] = field(default=(0.12, 0.55), kw_only=True)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not -self.count <= index < self.count:
            raise IndexError(index)
        return self.scene(index % self.count)

    def __iter__(self) -> Iterator[Sample]:
        return (self.scene(i) for i in range(self.count))

    def scene(self, index: int) -> Sample:
        """Return one scene with instances, semantic and panoptic map; ``index`` may exceed ``count``."""
        rng = np.random.default_rng((self.seed, index))
        canvas, stuff = _background(self.size_hw, rng)
        ids = np.zeros(self.size_hw, dtype=np.int32)
        drawn: list[_DrawnObject] = []
        for _ in range(int(rng.integers(self.min_objects, self.max_objects + 1))):
            for _attempt in range(8):
                item = _random_object(self.size_hw, self.object_sizes, rng)
                if item.fits(ids, drawn):
                    item.paint(canvas, ids, number=len(drawn) + 1)
                    drawn.append(item)
                    break
        canvas += np.float32(0.04) * (rng.random((*self.size_hw, 1), dtype=np.float32) - np.float32(0.5))
        canvas *= 255
        image = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
        return Sample(
            image=image,
            key=f"{index:06d}.jpg",
            instances=_instances(drawn, ids),
            semantic=_semantic(drawn, ids, stuff),
            panoptic=_panoptic(drawn, ids, stuff),
        )


@dataclass(eq=False)
class _DrawnObject:
    """An object with its pose; ``inside`` and ``rim`` are pixel fractions in its window ``rows`` x ``columns``."""

    label: int
    shape: Shape
    pose: Pose
    rows: slice
    columns: slice
    inside: Float[np.ndarray, "h w"]
    rim: Float[np.ndarray, "h w"]
    fill: Float[np.ndarray, "h w 3"]

    def fits(self, ids: Int[np.ndarray, "H W"], others: list["_DrawnObject"]) -> bool:
        """Return whether the object is large enough, and every object below it remains visible."""
        mask = self.inside >= 0.5
        if mask.sum() < _MIN_PIXELS:
            return False
        hidden = np.bincount(ids[self.rows, self.columns][mask], minlength=len(others) + 1)[1:]
        return not any(
            ((ids == i + 1).sum() - hidden[i]) < _MIN_VISIBLE_FRACTION * (others[i].inside >= 0.5).sum()
            for i in np.flatnonzero(hidden)
        )

    def paint(self, canvas: Float[np.ndarray, "H W 3"], ids: Int[np.ndarray, "H W"], *, number: int) -> None:
        """Draw the object on the image and in the map of object ids."""
        region = canvas[self.rows, self.columns]
        region += self.inside[..., None] * (self.fill * (1 - 0.45 * self.rim[..., None]) - region)
        ids[self.rows, self.columns][self.inside >= 0.5] = number


def _random_object(size_hw: tuple[int, int], sizes: tuple[float, float], rng: np.random.Generator) -> _DrawnObject:
    label = int(rng.integers(len(SHAPES)))
    shape = SHAPES[THING_CATEGORIES[label]]
    height, width = size_hw
    size = min(size_hw) * float(np.exp(rng.uniform(*np.log(sizes))))
    aspect = float(rng.uniform(*shape.aspect))
    pose = Pose(
        x=float(rng.uniform(0, width)),
        y=float(rng.uniform(0, height)),
        width=size * aspect**0.5,
        height=size / aspect**0.5,
        angle=float(rng.uniform(-np.pi, np.pi)) if shape.can_rotate else 0.0,
    )
    rings = [pose.to_image(ring) for ring in shape.rings]
    rows, columns = window(rings[0], size_hw)
    inside, rim = coverage(rings, rows, columns, rim=max(1.5, 0.012 * min(size_hw)))
    return _DrawnObject(label, shape, pose, rows, columns, inside, rim, _fill(pose, rows, columns, rng))


def _fill(pose: Pose, rows: slice, columns: slice, rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """Return a pattern of two colours that rotates with the object and is lit from above."""
    hue, value = rng.random(), rng.uniform(0.5, 0.98)
    first = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.55, 0.95), value), dtype=np.float32)
    second = np.array(colorsys.hsv_to_rgb(hue + rng.uniform(-0.12, 0.12), 0.35, 1.25 - 0.75 * value), dtype=np.float32)
    x, y = pose.to_local(rows.start, columns.start, (rows.stop - rows.start, columns.stop - columns.start))
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))](x, y, rng.uniform(7, 14))
    light = np.linspace(1.12, 0.86, len(x), dtype=np.float32)[:, None, None]
    return (first + pattern[..., None] * (second - first)) * light


def _noise(size_hw: tuple[int, int], grain_hw: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Return smooth noise around 0 with grains of the given size."""
    height, width = size_hw
    grid = rng.uniform(-1, 1, (height // grain_hw[0] + 2, width // grain_hw[1] + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def _background(
    size_hw: tuple[int, int], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "H W 3"], Int[np.ndarray, "H W"]]:
    """Draw sky above one or two kinds of ground with wavy borders; return the image and the label of each pixel."""
    height, width = size_hw
    names = ["sky", *rng.permutation(["grass", "water", "sand"])[: int(rng.integers(1, 3))]]
    texture_map, labels = np.ones(size_hw, dtype=np.float32), np.zeros(size_hw, dtype=np.int64)
    colours = np.zeros((len(ALL_CATEGORIES), 3), dtype=np.float32)
    across = np.linspace(0, 2 * np.pi, width)
    scale = min(size_hw) / 240
    tops = [0.0, *np.sort(rng.uniform(0.3, 0.8, len(names) - 1)) * height]
    for name, top in zip(names, tops, strict=True):
        waves = sum(rng.uniform(0, 0.02) * np.sin(rng.integers(1, 5) * across + rng.uniform(0, 6)) for _ in range(3))
        border = top + height * waves if top else np.zeros(width)
        first = max(0, int(border.min()))
        below = np.arange(first, height)[:, None] + 0.5 >= border
        colour, grain_height, grain_width, contrast = _STUFF[name]
        grain = (max(1, round(grain_height * scale)), max(1, round(grain_width * scale)))
        depth = np.linspace(-1, 1, height - first, dtype=np.float32)[:, None]
        texture = 1 + np.float32(contrast) * (_noise((height - first, width), grain, rng) - depth)
        np.copyto(texture_map[first:], texture, where=below)
        labels[first:][below] = ALL_CATEGORIES.index(name)
        colours[ALL_CATEGORIES.index(name)] = rng.uniform(0.85, 1.1) * (np.array(colour) + rng.normal(0, 0.03, 3))
    return texture_map[..., None] * colours.take(labels, axis=0), labels


def _instances(drawn: list[_DrawnObject], ids: Int[np.ndarray, "H W"]) -> Instances:
    count = len(drawn)
    visible = ids[None] == np.arange(1, count + 1)[:, None, None]
    amodal = np.zeros(visible.shape, dtype=bool)
    keypoints = np.zeros((count, len(KITE), 3))
    for i, item in enumerate(drawn):
        amodal[i, item.rows, item.columns] = item.inside >= 0.5
        if item.shape.keypoints is not None:
            keypoints[i] = _keypoints(item.pose.to_image(item.shape.keypoints), ids, number=i + 1)
    masks, amodal_masks = Masks.from_dense(visible).to_rle(), Masks.from_dense(amodal).to_rle()
    areas = masks.area()
    poses = [item.pose for item in drawn]
    return Instances(
        masks.boxes_xyxy(),
        np.array([item.label for item in drawn], dtype=np.int64),
        ids.shape,
        THING_CATEGORIES,
        masks=masks,
        keypoints=keypoints,
        oriented_boxes_xywhr=np.array([(p.x, p.y, p.width, p.height, p.angle) for p in poses]).reshape(-1, 5),
        amodal_boxes_xyxy=amodal_masks.boxes_xyxy(),
        amodal_masks=amodal_masks,
        columns={
            "areas": areas,
            "is_crowd": np.zeros(count, dtype=bool),
            "occluded": 1 - areas / amodal_masks.area(),
        },
    )


def _keypoints(
    points: Float[np.ndarray, "k 2"], ids: Int[np.ndarray, "H W"], *, number: int
) -> Float[np.ndarray, "k 3"]:
    """Return x, y and visibility: 2 visible, 1 occluded; zeros outside the image."""
    pixels = np.floor(points).astype(np.int64)
    inside = ((pixels >= 0) & (pixels < ids.shape[::-1])).all(axis=1)
    result = np.zeros((len(points), 3))
    result[inside, :2] = points[inside]
    result[inside, 2] = np.where(ids[pixels[inside, 1], pixels[inside, 0]] == number, 2, 1)
    return result


def _semantic(drawn: list[_DrawnObject], ids: Int[np.ndarray, "H W"], stuff: Int[np.ndarray, "H W"]) -> SemanticMap:
    labels = np.array([0, *(item.label for item in drawn)], dtype=np.int64)
    return SemanticMap(np.where(ids > 0, labels.take(ids), stuff), ALL_CATEGORIES)


def _panoptic(drawn: list[_DrawnObject], ids: Int[np.ndarray, "H W"], stuff: Int[np.ndarray, "H W"]) -> PanopticMap:
    """Return the panoptic map: objects are segments 1 to N, stuff follows."""
    objects = [Segment(i + 1, item.label) for i, item in enumerate(drawn)]
    visible = np.flatnonzero(np.bincount(stuff[ids == 0], minlength=len(ALL_CATEGORIES))).tolist()
    stuff_segments = [Segment(len(drawn) + 1 + position, label) for position, label in enumerate(visible)]
    id_of_label = np.zeros(len(ALL_CATEGORIES), dtype=np.int32)
    id_of_label[visible] = [segment.id for segment in stuff_segments]
    return PanopticMap(np.where(ids > 0, ids, id_of_label.take(stuff)), (*objects, *stuff_segments), ALL_CATEGORIES)
