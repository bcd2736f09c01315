"""Make the images of the page on semantic segmentation: receptive fields, and a feature map upsampled by six methods.

    python docs/semantic_images.py

The photograph is ``astronaut`` of scikit-image (NASA, in the public domain).
"""

from pathlib import Path

import numpy as np
from skimage import data

import otus
from otus.data.image_writing import write_image
from otus.experiments.segmentation_costs import WAYS, multiply_adds, receptive_field_px
from otus.reports.explain.figures import colormapped
from otus.reports.explain.upsampling import explain_upsampling
from otus.visualization.panels import Panel, grid
from otus.zoo.models import build_model
from otus.zoo.voc import VOC_WITH_BACKGROUND

IMAGES = Path(__file__).parent / "images"
SIDE = 320
MIDDLE = (100, 150)  # row and column of the pixel whose receptive field is drawn


def three_ways(image: np.ndarray) -> list[Panel]:
    """Draw the receptive field of a pixel, and write the cost of the image, for each approach."""
    panels = []
    for way, (model, arguments) in WAYS.items():
        cost = multiply_adds(build_model(model, VOC_WITH_BACKGROUND, arguments), (SIDE, SIDE))
        side = receptive_field_px(build_model(model, VOC_WITH_BACKGROUND), SIDE)
        drawn = (image * 0.45).astype(np.uint8)
        rows, columns = (slice(max(0, center - side // 2), center + side // 2 + 1) for center in MIDDLE)
        drawn[rows, columns] = image[rows, columns]
        drawn[MIDDLE[0] - 1 : MIDDLE[0] + 2, MIDDLE[1] - 1 : MIDDLE[1] + 2] = (255, 40, 40)
        text = (
            f"receptive field of the red pixel {side} x {side} pixels; {cost / 1e9:.2g} billion multiply-adds per image"
        )
        panels.append(Panel(way.capitalize(), text, drawn))
    return panels


def six_ways_up(image: np.ndarray) -> list[Panel]:
    """Draw a feature map, pooled, and upsampled by each method."""
    explanation = explain_upsampling(otus.load(), image, name="astronaut.png")
    coarse, fine = explanation.pooled.map[0, 0].numpy(), explanation.map
    low, high = fine.min(), fine.max()
    panels = [
        Panel("A feature map", f"{fine.shape[1]} x {fine.shape[0]}", colormapped(fine, low, high)),
        Panel("Pooled", f"{coarse.shape[1]} x {coarse.shape[0]}", colormapped(coarse, low, high)),
    ]
    for name, kind in explanation.document()["kinds"].items():
        text = f"mean absolute difference {kind['mean_absolute_difference']:.1f}"
        title = name.replace("-", " ").capitalize()
        panels.append(Panel(title, text, colormapped(explanation.fine[name], low, high)))
    return panels


def main(folder: Path = IMAGES) -> None:
    """Write the images into a folder."""
    astronaut = np.ascontiguousarray(data.astronaut()[:SIDE, 60 : 60 + SIDE])
    write_image(folder / "three_ways.jpg", grid(three_ways(astronaut), columns=4, width=300))
    write_image(folder / "six_ways_up.jpg", grid(six_ways_up(astronaut), columns=4, width=300))


if __name__ == "__main__":
    main()
