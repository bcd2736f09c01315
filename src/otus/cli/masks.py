"""``otus masks``: generate the masks of everything in images automatically, without prompts."""

from inspect import signature
from pathlib import Path
from typing import Annotated

import typer

from otus.cli._common import emit_json, given_options, output_folder, track, verb
from otus.cli._options import PROMPTABLE_MODEL, AsJson, Device, Precision, Runtime, Weights


def _number(name: str, text: str, default: str) -> object:
    """Return the option of one of the generator's arguments."""
    return typer.Option(f"--{name}", help=text, show_default=default)


@verb
def masks(
    source: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER", help="An image, or a folder of them.")],
    model: Annotated[
        str, typer.Option("--model", help="Promptable model: a name (see otus models), or a file of weights.")
    ] = PROMPTABLE_MODEL,
    weights: Weights = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="Format: sa1b, a JSON file per image, or coco, one file for all.", show_default="sa1b"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the masks; images whose masks are already there are skipped.",
            show_default="otus-automatic-masks beside the images",
        ),
    ] = None,
    points_per_side: Annotated[
        int | None, _number("points-per-side", "Number of points along each side of the grid.", "32")
    ] = None,
    points_per_batch: Annotated[int | None, _number("points-per-batch", "Number of points per batch.", "64")] = None,
    pred_iou_thresh: Annotated[
        float | None, _number("pred-iou-thresh", "Masks with a predicted IoU up to this are removed.", "0.88")
    ] = None,
    stability_score_thresh: Annotated[
        float | None, _number("stability-score-thresh", "Masks with a stability score below this are removed.", "0.95")
    ] = None,
    box_nms_thresh: Annotated[
        float | None,
        _number(
            "box-nms-thresh", "NMS: masks whose box has a larger IoU with a higher-scoring one are removed.", "0.7"
        ),
    ] = None,
    crop_n_layers: Annotated[
        int | None,
        _number(
            "crop-n-layers", "Number of layers of crops on which masks are generated too; layer n has 4^n crops.", "0"
        ),
    ] = None,
    crop_n_points_downscale_factor: Annotated[
        int | None,
        _number(
            "crop-n-points-downscale-factor",
            "In layer n of crops, the number of points per side is divided by this to the power of n.",
            "1",
        ),
    ] = None,
    min_mask_region_area: Annotated[
        int | None,
        _number("min-mask-region-area", "Regions and holes of masks with fewer pixels are removed.", "0"),
    ] = None,
    device: Device = None,
    precision: Precision = None,
    runtime: Runtime = None,
    as_json: AsJson = False,
) -> None:
    """Generate masks of everything in images from a grid of points; an interrupted run can be continued."""
    from otus.data.image_files import list_images
    from otus.errors import DataError, UsageError
    from otus.inference.mask_folders import FORMATS, WrittenMasks, write_masks
    from otus.inference.promptable import load_sam
    from otus.promptable.automatic import SamAutomaticMaskGenerator

    format_ = format_ or FORMATS[0]
    if format_ not in FORMATS:
        raise UsageError(f"--format: expected {' or '.join(FORMATS)}, got {format_!r}")
    folder = source if source.is_dir() else source.parent
    out = output_folder(out or folder / "otus-automatic-masks", "the masks")
    files = list_images(source) if source.is_dir() else [source]
    arguments = {
        "points_per_side": points_per_side,
        "points_per_batch": points_per_batch,
        "pred_iou_thresh": pred_iou_thresh,
        "stability_score_thresh": stability_score_thresh,
        "box_nms_thresh": box_nms_thresh,
        "crop_n_layers": crop_n_layers,
        "crop_n_points_downscale_factor": crop_n_points_downscale_factor,
        "min_mask_region_area": min_mask_region_area,
    }
    options = given_options(**arguments)
    method = load_sam(
        model, weights=weights, **given_options(device=device, precision=precision or "auto", runtime=runtime)
    )
    generator = SamAutomaticMaskGenerator(method, **options)
    parameters = signature(SamAutomaticMaskGenerator).parameters
    settings = {"model": method.name, "weights": method.model_hash}
    settings |= {name: options.get(name, parameters[name].default) for name in arguments if name != "points_per_batch"}
    errors: list[DataError] = []

    def skip(error: DataError) -> None:
        errors.append(error)
        typer.echo(f"otus: skipped: {error}", err=True)

    results: list[WrittenMasks] = []
    images = {path.relative_to(folder).as_posix(): path for path in files}
    writing = write_masks(images, generator, out, format=format_, settings=settings, report=skip)
    for result in track(writing, "masks", total=len(images)):
        results.append(result)
        if not as_json:
            typer.echo(f"{result.name}: {result.count} masks" + (" (already there)" if result.existed else ""))
    if as_json:
        records = [
            {"file": result.name, "masks": result.count, "kept": result.existed, "written": str(result.file)}
            for result in results
        ]
        emit_json({"model": method.name, "format": format_, "out": str(out), "images": records})
    else:
        total, num_existing = sum(result.count for result in results), sum(result.existed for result in results)
        already_there = f", {num_existing} of them already there" if num_existing else ""
        typer.echo(f"{total:,} masks of {len(results)} images in {out}{already_there}")
    if errors:
        raise typer.Exit(1)
