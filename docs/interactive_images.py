"""Make ``images/interactive.jpg`` of the page on interactive segmentation: prompts, and the predicted masks.

    python docs/interactive_images.py

The photographs are those of scikit-image: ``astronaut`` (NASA, in the public domain) and ``coffee`` (Rachel Michetti, CC0).
"""

from pathlib import Path

import numpy as np
from skimage import data

from otus.data.image_writing import write_image
from otus.interactive.grab_cut import GrabCut
from otus.interactive.graph_cut import GraphCut
from otus.interactive.mask_files import as_instances
from otus.structures import Prompt, Stroke
from otus.visualization.drawing import draw
from otus.visualization.palette import category_colours
from otus.visualization.panels import Panel, grid

IMAGES = Path(__file__).parent / "images"


def panel(title: str, text: str, image: np.ndarray, prompt: Prompt) -> Panel:
    """Draw the masks of a prompt, and its marks over them; background marks are black."""
    method = GraphCut() if prompt.box_xyxy is None else GrabCut()
    candidates = method.segment(method.embed(image), prompt)
    drawn = draw(image, as_instances(candidates), labels=False, opacity=0.5).copy()
    drawn[prompt.seeds(image.shape[:2], point_radius=8) >= 0] = 255
    marks = prompt.seeds(image.shape[:2], point_radius=6)
    colours = np.concatenate([np.zeros((1, 3), np.uint8), category_colours(max(1, prompt.num_objects))])
    drawn[marks >= 0] = colours[marks[marks >= 0]]
    return Panel(title, text, drawn)


def main(folder: Path = IMAGES) -> None:
    """Write the images into a folder."""
    astronaut, coffee = data.astronaut()[:400], data.coffee()
    strokes = [
        Stroke([[200, 120], [230, 60]], 1, 8),
        Stroke([[130, 330], [220, 270], [330, 330]], 1, 8),
        Stroke([[30, 60], [110, 120], [60, 260]], 0, 8),
        Stroke([[330, 60], [420, 200], [480, 300]], 0, 8),
    ]
    panels = [
        panel("Two points", "one on the object, one on background", coffee, Prompt([[300, 290], [40, 40]], [1, 0])),
        panel("Scribbles", "strokes on the object and on background", astronaut, Prompt(strokes=strokes)),
        panel(
            "A few points for each of several objects",
            "the cup, the saucer; no pixel is in two",
            coffee,
            Prompt(
                [[300, 160], [240, 220], [300, 60], [120, 250], [300, 370], [460, 250], [60, 60], [560, 360]],
                [1, 1, 1, 2, 2, 2, 0, 0],
            ),
        ),
        panel("A box", "around the cup and its saucer", coffee, Prompt(box_xyxy=[90, 20, 500, 380])),
    ]
    write_image(folder / "interactive.jpg", grid(panels, columns=2, width=380))


if __name__ == "__main__":
    main()
