"""The command ``otus``: one module per verb.

A verb declares its options, checks what the command line alone can get wrong, calls one function of the library with the
options that were given, and prints the result: a few lines or a table for people, one JSON document with ``--json``. No
figure is computed here, and no default is repeated: an option that was not given is None and is not passed on, so that
``otus predict`` and ``otus.load().predict()`` cannot disagree.

The rules that every verb keeps:

- stdout carries the result, stderr notes, progress and errors, so that ``otus … --json | jq`` works;
- exit code 0: done; 1: the work failed, or some input was skipped; 2: the command was wrong; 130: interrupted by Ctrl-C
  or SIGTERM;
- an option has the name of the argument that it sets (``--nms-iou``, ``nms_iou``);
- ``otus --help`` answers at once: torch, numpy and pydantic are imported by a verb when it runs, not at the top.

Where to start reading: ``_common.py`` (exit codes, JSON, tables, output files), ``_options.py`` (the options that several
verbs share), then ``predict.py``, the pattern for the others. ``train``, ``evaluate`` and ``compare`` are the working
cycle; ``segment`` and ``masks`` use promptable models; ``explain`` writes pages that show how a prediction or a metric is
computed; ``propose`` and ``benchmark`` show the lineage of region proposals; ``doctor``, ``convert`` and ``models`` need no
model, and ``export`` writes a model as ONNX or OpenVINO. The table below lists them all, with the two examples at the end of
each help.
"""

import io
import signal
import sys
from typing import Annotated

import typer

from otus.cli import (
    benchmark,
    compare,
    convert,
    doctor,
    evaluate,
    explain,
    export,
    masks,
    models,
    predict,
    propose,
    segment,
    train,
)
from otus.cli._common import examples

app = typer.Typer(
    name="otus",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_VERBS = (
    (
        predict.predict,
        "otus predict photos/ --page",
        "otus predict film.mp4 --categories person,dog --refine-masks sam_efficientnet_lite0",
    ),
    (
        train.train,
        "otus train --weights packaged --data photos/annotations.json --val 0.2 --minutes 10",
        "otus train --resume runs/instance/mask_rcnn_efficientnet_lite0_fpn",
    ),
    (
        evaluate.evaluate,
        "otus evaluate --data annotations.json --predictions results.json",
        "otus evaluate --data voc2007 --split val --model fcos_efficientnet_lite0_fpn --plots plots",
    ),
    (
        compare.compare,
        "otus compare --data photos --models fcos_efficientnet_lite0_fpn,mine=runs/detection/fcos --val-split val",
        "otus compare --data annotations.json --predictions a.json,b.json",
    ),
    (
        propose.propose,
        "otus propose street.jpg --out proposals.png",
        "otus propose street.jpg --method rpn --count 100 --json",
    ),
    (
        segment.segment,
        "otus segment owl.jpg --point 250,180,1 --overlay owl-overlay.png",
        "otus segment owl.jpg --text 'largest bird' --out owl-mask.png",
    ),
    (
        masks.masks,
        "otus masks photos --pred-iou-thresh 0.5 --stability-score-thresh 0.7",
        "otus masks photos --model mobile_sam --weights mobile_sam.pt --format coco --out masks",
    ),
    (
        convert.convert,
        "otus convert annotations.json yolo-data --to yolo",
        "otus convert voc2007 coco-data --to coco --split val --images link",
    ),
    (doctor.doctor, "otus doctor photos", "otus doctor photos --split train --ignore same_photograph"),
    (
        export.export,
        "otus export fcos_efficientnet_lite0_fpn",
        "otus export mask_rcnn_efficientnet_lite0_fpn --format openvino --out mask_rcnn.xml",
    ),
    (models.models, "otus models", "otus models --json"),
)
for function, *commands in _VERBS:
    app.command(function.__name__, epilog=examples(*commands))(function)
app.add_typer(explain.app, name="explain")
app.add_typer(benchmark.app, name="benchmark")


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version
        from platform import python_version

        from otus import __version__

        typer.echo(f"otus {__version__}, torch {version('torch')}, Python {python_version()}")
        raise typer.Exit


@app.callback()
def otus(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the versions of otus, torch and Python."
        ),
    ] = False,
) -> None:
    """Object detection and segmentation: train, evaluate and compare models, predict, and see how results are computed."""


def main() -> None:
    """Entry point of the command ``otus``."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may contain bytes that are not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: temporary files are removed
    app()
