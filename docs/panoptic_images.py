"""Make ``images/panoptic.jpg`` of the page on panoptic segmentation: two answers for a made-up scene, and their merge.

    python docs/panoptic_images.py

The instances are the scene's whole (amodal) objects, so that their masks overlap; the nearer, the higher the score.
"""

from pathlib import Path

import numpy as np

from otus.data.image_writing import write_image
from otus.data.scenes.generator import Scenes
from otus.instance.panoptic import merge_panoptic
from otus.structures import Instances
from otus.visualization.drawing import draw, draw_panoptic, draw_semantic
from otus.visualization.panels import Panel, grid

SCENE = 14


def main() -> None:
    sample = Scenes(SCENE + 1, size_hw=(360, 480), seed=2, max_objects=7)[SCENE]
    found, semantic = sample.instances, sample.semantic
    assert found is not None
    assert semantic is not None
    masks = found.amodal_masks
    assert masks is not None
    scores = np.linspace(0.7, 0.99, len(found))
    instances = Instances(masks.boxes_xyxy(), found.labels, found.size_hw, found.categories, scores=scores, masks=masks)
    merged = merge_panoptic(instances, semantic)
    panels = [
        Panel("Instances", "each object alone; masks overlap", draw(sample.image, instances)),
        Panel("Semantic map", "every pixel; objects of one kind are one", draw_semantic(sample.image, semantic)),
        Panel("Panoptic map", "a mostly hidden object is left out: void", draw_panoptic(sample.image, merged)),
    ]
    write_image(Path(__file__).parent / "images" / "panoptic.jpg", grid(panels, columns=3, width=380))


if __name__ == "__main__":
    main()
