"""``otus export``: export a model to ONNX or OpenVINO."""

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
    """Export a model to a file that runs without Otus, and check its predictions.

    Region-based detectors with a region proposal network, dense detectors, DETR and semantic segmenters can be exported. The
    exported file can be given as --model to the verbs predict and evaluate. Promptable models become two files, encoder and
    decoder; the first can be given as --method to the verb segment.
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
    exported = export_model(predictor, out, images=_read_images(image or []), **given_options(format=format))
    if as_json:
        emit_json(
            {
                "model": predictor.name,
                "file": exported.file,
                "files": exported.files,
                "apart": exported.max_differences,
                "objects": exported.num_detections,
            }
        )
    else:
        typer.echo(str(exported))


def _read_images(files: list[Path]) -> list:
    from otus.data.images import read_image

    return [read_image(file) for file in files]
