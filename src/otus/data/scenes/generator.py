"""Synthetic scenes: textured shapes over sky, water, grass or sand, occluding item another, with complete ground truth.

For tests, first steps, and what real data sets seldom label: whole (amodal) objects, oriented boxes. The same seed gives
the same scenes. Shape shorthand: H x W an image, N objects, K keypoints.

- Later objects hide earlier ones; of every object at least a fifth can be seen. The image's border cuts objects.
- A pixel belongs to an object if that covers at least half of it; only the drawing is anti-aliased.
- Nothing hides an amodal mask but the border; amodal boxes are those of amodal masks. Oriented boxes are of the whole shape
  and may reach outside.
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

_STUFF = {  # colour, height and width of a grain in pixels, contrast
    "sky": ((0.50, 0.68, 0.90), 30, 60, 0.10),
    "grass": ((0.36, 0.52, 0.22), 7, 2, 0.11),
    "water": ((0.16, 0.42, 0.55), 3, 26, 0.10),
    "sand": ((0.80, 0.70, 0.50), 2, 2, 0.06),
}
THING_CATEGORIES = Categories(tuple(SHAPES), ids=tuple(range(1, len(SHAPES) + 1)), keypoints=(("kite", KITE),))
"""What the objects of a scene can be."""
ALL_CATEGORIES = Categories(
    (*SHAPES, *_STUFF),
    ids=tuple(range(1, len(SHAPES) + len(_STUFF) + 1)),
    is_thing=(True,) * len(SHAPES) + (False,) * len(_STUFF),
    keypoints=(("kite", KITE),),
)
"""What the pixels of a scene can be: the objects with the same labels, then sky, grass, water and sand."""

_LEAST_VISIBLE = 0.2
_LEAST_PIXELS = 24


@dataclass(frozen=True)
class Scenes:
    """``count`` synthetic scenes of size ``size_hw``, each with ``min_objects`` to ``max_objects`` objects.

    The side of an object is a share of the scene's shorter side, from ``object_sizes``, drawn evenly on a logarithmic
    scale. An object that finds no place is left out.

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
        """Return item scene with instances, semantic and panoptic map; ``index`` may exceed ``count``."""
        rng = np.random.default_rng((self.seed, index))
        canvas, stuff = _background(self.size_hw, rng)
        ids = np.zeros(self.size_hw, dtype=np.int32)
        painted: list[_Painted] = []
        for _ in range(int(rng.integers(self.min_objects, self.max_objects + 1))):
            for _attempt in range(8):
                item = _draw(self.size_hw, self.object_sizes, rng)
                if item.fits(ids, painted):
                    item.paint(canvas, ids, number=len(painted) + 1)
                    painted.append(item)
                    break
        canvas += np.float32(0.04) * (rng.random((*self.size_hw, 1), dtype=np.float32) - np.float32(0.5))
        canvas *= 255
        image = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
        return Sample(
            image=image,
            key=f"{index:06d}.jpg",
            instances=_instances(painted, ids),
            semantic=_semantic(painted, ids, stuff),
            panoptic=_panoptic(painted, ids, stuff),
        )


@dataclass(eq=False)
class _Painted:
    """An object in its place: ``inside`` and ``rim`` are the coverage of the pixels of its window ``rows`` x ``columns``."""

    label: int
    shape: Shape
    pose: Pose
    rows: slice
    columns: slice
    inside: Float[np.ndarray, "h w"]
    rim: Float[np.ndarray, "h w"]
    fill: Float[np.ndarray, "h w 3"]

    def fits(self, ids: Int[np.ndarray, "H W"], others: list["_Painted"]) -> bool:
        """Return whether the object is large enough, and every object below stays visible."""
        mask = self.inside >= 0.5
        if mask.sum() < _LEAST_PIXELS:
            return False
        hidden = np.bincount(ids[self.rows, self.columns][mask], minlength=len(others) + 1)[1:]
        return not any(
            ((ids == i + 1).sum() - hidden[i]) < _LEAST_VISIBLE * (others[i].inside >= 0.5).sum()
            for i in np.flatnonzero(hidden)
        )

    def paint(self, canvas: Float[np.ndarray, "H W 3"], ids: Int[np.ndarray, "H W"], *, number: int) -> None:
        """Draw the object over the image, and enter it in the map of object ids."""
        region = canvas[self.rows, self.columns]
        region += self.inside[..., None] * (self.fill * (1 - 0.45 * self.rim[..., None]) - region)
        ids[self.rows, self.columns][self.inside >= 0.5] = number


def _draw(size_hw: tuple[int, int], sizes: tuple[float, float], rng: np.random.Generator) -> _Painted:
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
        angle=float(rng.uniform(-np.pi, np.pi)) if shape.turns else 0.0,
    )
    rings = [pose.place(ring) for ring in shape.rings]
    rows, columns = window(rings[0], size_hw)
    inside, rim = coverage(rings, rows, columns, rim=max(1.5, 0.012 * min(size_hw)))
    return _Painted(label, shape, pose, rows, columns, inside, rim, _fill(pose, rows, columns, rng))


def _fill(pose: Pose, rows: slice, columns: slice, rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """Return a two-coloured pattern that rotates with the object, lit from above."""
    hue, value = rng.random(), rng.uniform(0.5, 0.98)
    first = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.55, 0.95), value), dtype=np.float32)
    second = np.array(colorsys.hsv_to_rgb(hue + rng.uniform(-0.12, 0.12), 0.35, 1.25 - 0.75 * value), dtype=np.float32)
    x, y = pose.own_frame(rows.start, columns.start, (rows.stop - rows.start, columns.stop - columns.start))
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
    """Return sky over one or two grounds with wavy borders: the image, and the label of each pixel."""
    height, width = size_hw
    names = ["sky", *rng.permutation(["grass", "water", "sand"])[: int(rng.integers(1, 3))]]
    light, labels = np.ones(size_hw, dtype=np.float32), np.zeros(size_hw, dtype=np.int64)
    tones = np.zeros((len(ALL_CATEGORIES), 3), dtype=np.float32)
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
        np.copyto(light[first:], texture, where=below)
        labels[first:][below] = ALL_CATEGORIES.index(name)
        tones[ALL_CATEGORIES.index(name)] = rng.uniform(0.85, 1.1) * (np.array(colour) + rng.normal(0, 0.03, 3))
    return light[..., None] * tones.take(labels, axis=0), labels


def _instances(painted: list[_Painted], ids: Int[np.ndarray, "H W"]) -> Instances:
    count = len(painted)
    visible = ids[None] == np.arange(1, count + 1)[:, None, None]
    whole = np.zeros(visible.shape, dtype=bool)
    keypoints = np.zeros((count, len(KITE), 3))
    for i, item in enumerate(painted):
        whole[i, item.rows, item.columns] = item.inside >= 0.5
        if item.shape.keypoints is not None:
            keypoints[i] = _keypoints(item.pose.place(item.shape.keypoints), ids, number=i + 1)
    masks, amodal_masks = Masks.from_dense(visible).to_rle(), Masks.from_dense(whole).to_rle()
    areas = masks.area()
    poses = [item.pose for item in painted]
    return Instances(
        masks.boxes_xyxy(),
        np.array([item.label for item in painted], dtype=np.int64),
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


def _semantic(painted: list[_Painted], ids: Int[np.ndarray, "H W"], stuff: Int[np.ndarray, "H W"]) -> SemanticMap:
    labels = np.array([0, *(item.label for item in painted)], dtype=np.int64)
    return SemanticMap(np.where(ids > 0, labels.take(ids), stuff), ALL_CATEGORIES)


def _panoptic(painted: list[_Painted], ids: Int[np.ndarray, "H W"], stuff: Int[np.ndarray, "H W"]) -> PanopticMap:
    """Return the panoptic map: objects are segments 1 to N, stuff follows."""
    objects = [Segment(i + 1, item.label) for i, item in enumerate(painted)]
    seen = np.flatnonzero(np.bincount(stuff[ids == 0], minlength=len(ALL_CATEGORIES))).tolist()
    grounds = [Segment(len(painted) + 1 + place, label) for place, label in enumerate(seen)]
    number = np.zeros(len(ALL_CATEGORIES), dtype=np.int32)
    number[seen] = [segment.id for segment in grounds]
    return PanopticMap(np.where(ids > 0, ids, number.take(stuff)), (*objects, *grounds), ALL_CATEGORIES)
