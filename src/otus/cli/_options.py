"""The options that several verbs share, each declared once: its name, its help, and the default that the help shows.

A verb declares ``weights: Weights = None``; the default value is that of the function that the verb calls. An option that
only one verb has, or that has another meaning there, is declared in the verb.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

MODEL = "mask_rcnn_efficientnet_lite0_fpn"
"""Name of the model that ``otus.load()`` loads."""
PROMPTABLE_MODEL = "sam_efficientnet_lite0"
"""Name of the packaged promptable model."""
_DATA: Any = typer.Option("--data", help="Images with ground truth: a folder or an annotation file.")

Data = Annotated[Path, _DATA]
OptionalData = Annotated[Path | None, _DATA]
Format = Annotated[
    str | None,
    typer.Option("--format", help="Format of the labels, where several are found.", show_default="detected"),
]
Split = Annotated[str | None, typer.Option("--split", help="Split of the data, e.g. val.", show_default="the only one")]
Predictions = Annotated[Path, typer.Option("--predictions", help="Predictions: a file of COCO results.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="Model: a name (see otus models), a file of weights, or a run folder.", show_default=MODEL
    ),
]
SemanticModel = Annotated[
    str | None,
    typer.Option(
        "--semantic-model",
        help="Semantic model: a name or file; its maps are merged with the instances of --model into panoptic maps.",
        show_default="no merge",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Weights to load for a named model: a file, or the name of published weights.",
        show_default="the best available",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="Device: cpu, cuda, mps or auto.", show_default="auto")]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="Precision: exact, float32, bfloat16 or auto, the fastest.", show_default="auto"),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        help="Runtime of the backbone: torch, onnxruntime, openvino, or auto, the fastest one.",
        show_default="torch",
    ),
]
ScoreThreshold = Annotated[
    float | None,
    typer.Option(
        "--score-threshold", help="Minimum score.", show_default="0.5, or the thresholds stored with the weights"
    ),
]
Flip = Annotated[
    bool,
    typer.Option("--flip", help="Semantic segmentation: average probabilities over the image and its mirror image."),
]
Scales = Annotated[
    str | None,
    typer.Option(
        "--scales",
        help="Semantic segmentation: average probabilities over these factors of the image size, e.g. 0.75,1,1.25.",
        show_default="1",
    ),
]
ZoomIn = Annotated[
    bool,
    typer.Option(
        "--zoom-in", help="Promptable models: predict small objects in the enlarged windows around them; slower."
    ),
]
IoU = Annotated[float | None, typer.Option("--iou", help="IoU threshold of a match.", show_default="0.5")]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol", help="Protocol: coco, voc07 or voc12, with settings, e.g. coco:max_dets=10.", show_default="coco"
    ),
]
Masks = Annotated[bool, typer.Option("--masks", help="Compare masks instead of boxes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def html_page(default: str) -> Any:
    """Return the option ``--out`` of a verb that writes one HTML page, by default to ``default``."""
    return typer.Option("--out", help="HTML page to write; .html is added.", show_default=default)
