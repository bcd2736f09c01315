"""Make ``images/promptable.jpg`` of the page on Segment Anything: prompts, and the masks of the packaged model.

    python docs/promptable_images.py

The photographs are those of scikit-image: ``coffee`` (Rachel Michetti, CC0), ``chelsea`` (Stéfan van der Walt, CC0) and
``astronaut`` (NASA, in the public domain).
"""

from pathlib import Path

import numpy as np
from skimage import data

import otus
from otus.data.image_writing import write_image
from otus.inference.detect_then_prompt import DetectThenPrompt
from otus.inference.promptable import load_sam
from otus.interactive.mask_files import as_instances
from otus.interactive.methods import PROMPTABLE_MODEL
from otus.promptable.automatic import SamAutomaticMaskGenerator
from otus.structures import Instances, MaskCandidates, Prompt
from otus.visualization.drawing import draw
from otus.visualization.panels import Panel, grid

IMAGES = Path(__file__).parent / "images"
DETECTOR = "fcos_efficientnet_lite0_fpn"


def panel(title: str, text: str, image: np.ndarray, instances: Instances, prompt: Prompt | None = None) -> Panel:
    """Draw masks, and the points of a prompt over them: white on the object, red on background."""
    drawn = draw(image, instances, boxes=False, labels=False, opacity=0.5).copy()
    if prompt is not None:
        points = Prompt(prompt.points_xy, prompt.point_labels)
        drawn[points.seeds(image.shape[:2], point_radius=9) >= 0] = 0
        marks = points.seeds(image.shape[:2], point_radius=6)
        drawn[marks == 1] = 255
        drawn[marks == 0] = (200, 30, 30)
    return Panel(title, text, drawn)


def main(folder: Path = IMAGES) -> None:
    """Write the images into a folder."""
    method, detector = load_sam(PROMPTABLE_MODEL), otus.load(DETECTOR)
    coffee, cat, astronaut = data.coffee(), data.chelsea(), data.astronaut()[:342]
    embedding = method.embed(coffee)
    click = Prompt([[290, 190]], [1])
    first = method.segment(embedding, click)
    panels = [
        panel(
            f"Candidate {index + 1} of one click",
            f"predicted IoU {score:.2f}",
            coffee,
            as_instances(first)[[index]],
            click,
        )
        for index, score in enumerate(first.scores.tolist())
    ]
    corrected = Prompt([[290, 190], [150, 320]], [1, 0])
    refined = method.segment(embedding, corrected, mask_logits=first.low_resolution_logits[0])
    panels.append(panel("A second click", "on background (red)", coffee, as_instances(refined), corrected))
    boxed = method.segment(embedding, Prompt(box_xyxy=[90, 20, 500, 380]))
    panels.append(panel("A box", "around the cup and its saucer", coffee, as_instances(boxed)))
    generator = SamAutomaticMaskGenerator(method, points_per_side=16, pred_iou_thresh=0.5, stability_score_thresh=0.7)
    everything = generator.masks(coffee).masks
    all_masks = MaskCandidates(everything, np.ones(len(everything)), np.arange(1, len(everything) + 1))
    panels.append(panel("Everything", "a grid of 16 x 16 points", coffee, as_instances(all_masks)))
    words = DetectThenPrompt(detector, method)
    found = words.segment(words.embed(cat), Prompt(text="cat")).best_of_each()
    panels.append(panel("Words", '"cat": found by a detector', cat, as_instances(found)))
    (prediction,) = detector.predict(astronaut, refine_masks=method)
    panels.append(panel("Part of a larger system", "masks for the boxes of FCOS", astronaut, prediction.instances))
    write_image(folder / "promptable.jpg", grid(panels, columns=4, width=280))


if __name__ == "__main__":
    main()
