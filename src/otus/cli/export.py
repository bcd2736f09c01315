"""``otus export``: write a model as a file of ONNX or OpenVINO."""

from pathlib import Path
from typing import Annotated

import typer

from otus.cli._common import emit_json, given_options, verb
from otus.cli._options import AsJson, Weights


@verb
def export(
    model: Annotated[str, typer.Argument(help="Model: a name (see otus models), a file of weights, or a run folder.")],
    format: Annotated[
        str | None, typer.Option("--format", help="Format: onnx or openvino.", show_default="onnx")
    ] = None,
    weights: Weights = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", help="Image to check the file with; may be repeated.", show_default="synthetic scenes"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write.", show_default="named after the model")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model as a file that runs without Otus, for images of any number and size, and check its predictions.

    Detectors of regions that propose by themselves, dense detectors, DETR and semantic segmenters can be exported. otus
    predict and otus evaluate take the file as --model.
    """
    from otus.errors import UsageError
    from otus.inference.export import SUFFIXES, export_model
    from otus.inference.loading import load

    suffix = SUFFIXES.get(format or "onnx")
    if suffix is None:
        raise UsageError(f"--format: expected {' or '.join(SUFFIXES)}, got {format}")
    if out is not None and not out.is_dir() and out.suffix != suffix:
        raise UsageError(f"--out: expected a file that ends in {suffix}, got {out}")
    predictor = load(model, **given_options(weights=weights), device="cpu")
    if out is None or out.is_dir():
        out = (out or Path()) / f"{predictor.name}{suffix}"
    written = export_model(predictor, out, images=_read(image or []), **given_options(format=format))
    if as_json:
        emit_json(
            {
                "model": predictor.name,
                "file": written.file,
                "apart": written.max_differences,
                "objects": written.num_detections,
            }
        )
    else:
        typer.echo(str(written))


def _read(files: list[Path]) -> list:
    from otus.data.images import read_image

    return [read_image(file) for file in files]
