"""Make the images of the page on semantic segmentation: what a pixel sees in each way, and a map brought back in six ways.

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
MIDDLE = (100, 150)  # row and column of the pixel whose square is drawn


def three_ways(image: np.ndarray) -> list[Panel]:
    """Draw the square of pixels that decides on one of them, and say what the whole image costs."""
    panels = []
    for way, (model, arguments) in WAYS.items():
        cost = multiply_adds(build_model(model, VOC_WITH_BACKGROUND, arguments), (SIDE, SIDE))
        side = receptive_field_px(build_model(model, VOC_WITH_BACKGROUND), SIDE)
        drawn = (image * 0.45).astype(np.uint8)
        rows, columns = (slice(max(0, at - side // 2), at + side // 2 + 1) for at in MIDDLE)
        drawn[rows, columns] = image[rows, columns]
        drawn[MIDDLE[0] - 1 : MIDDLE[0] + 2, MIDDLE[1] - 1 : MIDDLE[1] + 2] = (255, 40, 40)
        text = f"the red pixel's label from {side} x {side} pixels; {cost / 1e9:.2g} billion multiply-adds an image"
        panels.append(Panel(way.capitalize(), text, drawn))
    return panels


def six_ways_up(image: np.ndarray) -> list[Panel]:
    """Draw a feature map, pooled, and brought back in each way."""
    explanation = explain_upsampling(otus.load(), image, name="astronaut.png")
    coarse, fine = explanation.pooled.map[0, 0].numpy(), explanation.map
    low, high = fine.min(), fine.max()
    panels = [
        Panel("A feature map", f"{fine.shape[1]} x {fine.shape[0]}", colormapped(fine, low, high)),
        Panel("Pooled", f"{coarse.shape[1]} x {coarse.shape[0]}", colormapped(coarse, low, high)),
    ]
    for name, kind in explanation.document()["kinds"].items():
        text = f"{kind['mean_absolute_difference']:.1f} from the map in the mean"
        title = name.replace("-", " ").capitalize()
        panels.append(Panel(title, text, colormapped(explanation.fine[name], low, high)))
    return panels


def main() -> None:
    astronaut = np.ascontiguousarray(data.astronaut()[:SIDE, 60 : 60 + SIDE])
    write_image(IMAGES / "three_ways.jpg", grid(three_ways(astronaut), columns=4, width=300))
    write_image(IMAGES / "six_ways_up.jpg", grid(six_ways_up(astronaut), columns=4, width=300))


if __name__ == "__main__":
    main()
