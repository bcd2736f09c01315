"""``otus masks``: masks of everything in images, without anyone to ask."""

from pathlib import Path
from typing import Annotated

import typer

from otus.cli._common import emit_json, given_options, output_folder, track, verb
from otus.cli._options import AsJson, Device, Precision, Weights


def _number(name: str, text: str, default: str) -> object:
    return typer.Option(f"--{name}", help=text, show_default=default)


@verb
def masks(
    source: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER", help="An image, or a folder of them.")],
    model: Annotated[
        str, typer.Option("--model", help="Promptable model: a name (see otus models), or a file of weights.")
    ],
    weights: Weights = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="sa1b: a JSON file for each image; coco: one for all.", show_default="sa1b"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the masks; images whose masks are there already are not done again.",
            show_default="otus-automatic-masks beside the images",
        ),
    ] = None,
    points_per_side: Annotated[
        int | None, _number("points-per-side", "Points along each side of the grid.", "32")
    ] = None,
    points_per_batch: Annotated[
        int | None, _number("points-per-batch", "Points whose answers are in memory at once.", "64")
    ] = None,
    pred_iou_thresh: Annotated[
        float | None, _number("pred-iou-thresh", "Masks stay whose predicted IoU is above it.", "0.88")
    ] = None,
    stability_score_thresh: Annotated[
        float | None, _number("stability-score-thresh", "Masks stay whose stability is at least so much.", "0.95")
    ] = None,
    box_nms_thresh: Annotated[
        float | None, _number("box-nms-thresh", "NMS: IoU of boxes above which the lower-scored mask goes.", "0.7")
    ] = None,
    crop_n_layers: Annotated[
        int | None, _number("crop-n-layers", "How often the image is searched again in smaller crops.", "0")
    ] = None,
    crop_n_points_downscale_factor: Annotated[
        int | None, _number("crop-n-points-downscale-factor", "By which each layer has fewer points a side.", "1")
    ] = None,
    min_mask_region_area: Annotated[
        int | None, _number("min-mask-region-area", "Parts and holes of fewer pixels are removed.", "0")
    ] = None,
    device: Device = None,
    precision: Precision = None,
    as_json: AsJson = False,
) -> None:
    """Find masks of everything in images, by a grid of points; a run that was stopped goes on where it was."""
    from otus.data.image_files import list_images
    from otus.errors import DataError, UsageError
    from otus.inference.mask_folders import FORMATS, WrittenMasks, write_masks
    from otus.inference.promptable import load_sam
    from otus.promptable.automatic import SamAutomaticMaskGenerator

    form = format_ or FORMATS[0]
    if form not in FORMATS:
        raise UsageError(f"--format: expected {' or '.join(FORMATS)}, got {form!r}")
    folder = source if source.is_dir() else source.parent
    out = output_folder(out or folder / "otus-automatic-masks", "the masks")
    files = list_images(source) if source.is_dir() else [source]
    options = given_options(
        points_per_side=points_per_side,
        points_per_batch=points_per_batch,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        box_nms_thresh=box_nms_thresh,
        crop_n_layers=crop_n_layers,
        crop_n_points_downscale_factor=crop_n_points_downscale_factor,
        min_mask_region_area=min_mask_region_area,
    )
    method = load_sam(model, weights=weights, **given_options(device=device, precision=precision or "auto"))
    generator = SamAutomaticMaskGenerator(method, **options)
    settings = {"model": method.name, "weights": method.model_hash, **options}
    settings.pop("points_per_batch", None)
    errors: list[DataError] = []

    def skip(error: DataError) -> None:
        errors.append(error)
        typer.echo(f"otus: skipped: {error}", err=True)

    done: list[WrittenMasks] = []
    images = {path.name: path for path in files}
    found = write_masks(images, generator, out, format=form, settings=settings, report=skip)
    for one in track(found, "masks", total=len(images)):
        done.append(one)
        if not as_json:
            typer.echo(f"{one.name}: {one.count} masks" + (" (from before)" if one.existed else ""))
    if as_json:
        records = [
            {"file": one.name, "masks": one.count, "kept": one.existed, "written": str(one.file)} for one in done
        ]
        emit_json({"model": method.name, "format": form, "out": str(out), "images": records})
    else:
        total, before = sum(one.count for one in done), sum(one.existed for one in done)
        kept = f", {before} of them from before" if before else ""
        typer.echo(f"{total:,} masks of {len(done)} images in {out}{kept}")
    if errors:
        raise typer.Exit(1)
