"""Make ``images/panoptic.jpg`` of the page on panoptic segmentation: instances, semantic map and their merge.

    python docs/panoptic_images.py

The instances are the amodal objects of a synthetic scene, so that their masks overlap; nearer ones have higher scores.
"""

from pathlib import Path

import numpy as np

from otus.data.image_writing import write_image
from otus.data.scenes.generator import Scenes
from otus.instance.panoptic import merge_panoptic
from otus.structures import Instances
from otus.visualization.drawing import draw, draw_panoptic, draw_semantic
from otus.visualization.panels import Panel, grid

IMAGES = Path(__file__).parent / "images"

SCENE = 14


def main(folder: Path = IMAGES) -> None:
    """Write the images into a folder."""
    sample = Scenes(SCENE + 1, size_hw=(360, 480), seed=2, max_objects=7)[SCENE]
    objects, semantic = sample.instances, sample.semantic
    assert objects is not None
    assert semantic is not None
    masks = objects.amodal_masks
    assert masks is not None
    scores = np.linspace(0.7, 0.99, len(objects))
    boxes_xyxy = masks.boxes_xyxy()
    instances = Instances(boxes_xyxy, objects.labels, objects.size_hw, objects.categories, scores=scores, masks=masks)
    merged = merge_panoptic(instances, semantic)
    panels = [
        Panel("Instances", "each object alone; masks overlap", draw(sample.image, instances)),
        Panel("Semantic map", "every pixel; objects of one kind are one", draw_semantic(sample.image, semantic)),
        Panel("Panoptic map", "a mostly hidden object is left out: void", draw_panoptic(sample.image, merged)),
    ]
    write_image(folder / "panoptic.jpg", grid(panels, columns=3, width=380))


if __name__ == "__main__":
    main()
