"""``otus segment``: segment objects by points, boxes or scribbles, with a classical method or a promptable model."""

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otus.cli._common import emit_json, output_file, verb
from otus.cli._options import MODEL, AsJson, Device, Precision, Runtime, Weights, ZoomIn
from otus.cli._segment_image import draw, line, methods_for, segment_image
from otus.cli._segment_many import segment_many

if TYPE_CHECKING:
    from otus.structures import Prompt

Points = Annotated[
    list[str] | None,
    typer.Option(
        "--point",
        help="A point: X,Y,1 on the object, X,Y,0 on background. May be repeated.",
        show_default="no points",
    ),
]
PointsFor = Annotated[
    list[str] | None,
    typer.Option(
        "--points-for",
        help="A point of one of several objects: NUMBER:X,Y. May be repeated.",
        show_default="no points",
    ),
]
Box = Annotated[str | None, typer.Option("--box", help="A box around the object: X1,Y1,X2,Y2.", show_default="no box")]
Scribbles = Annotated[
    Path | None,
    typer.Option(
        "--scribbles",
        help="Label image (palette or grey PNG): 0 unmarked, 255 background, else the object's number.",
        show_default="no scribbles",
    ),
]
StartMask = Annotated[
    Path | None,
    typer.Option(
        "--mask", help="Label image of an initial mask: 0 background, else the object.", show_default="no mask"
    ),
]


@verb
def segment(
    source: Annotated[
        Path, typer.Argument(metavar="IMAGE|FOLDER|VIDEO", help="An image, a folder of them, or a video with --frames.")
    ],
    point: Points = None,
    points_for: PointsFor = None,
    box: Box = None,
    scribbles: Scribbles = None,
    mask: StartMask = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            help="Words: a category of the detector, e.g. dog for all dogs; left, right, top, bottom, largest or smallest "
            "before it for a single one. If nothing is found, the masks are empty, and that is no error.",
            show_default="no text",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help='JSON file of prompts by image: {"a.jpg": {"points": [[250, 180, 1]]}, "b.jpg": {"text": "dog"}}.',
            show_default="no prompts",
        ),
    ] = None,
    frames: Annotated[
        bool,
        typer.Option(
            "--frames",
            help="A video or a folder of its frames: a frame without a prompt is segmented by the previous mask.",
        ),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="Method: graph-cut, grabcut, or a promptable model: a name (see otus models) or a file of weights.",
            show_default="graph-cut with background points, scribbles or a mask, else sam_efficientnet_lite0",
        ),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option("--detector", help="Detector that finds the words of --text: a name or file.", show_default=MODEL),
    ] = None,
    weights: Weights = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder",
            help="Folder of the CLIP that --method was trained with, which then answers --text instead of a detector.",
            show_default="none",
        ),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Return all candidates of a promptable model, not only the best per object.")
    ] = False,
    zoom_in: ZoomIn = False,
    device: Device = None,
    precision: Precision = None,
    runtime: Runtime = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File for the masks; a folder if several images are segmented.",
            show_default="IMAGE-mask.png, or none with --json; otus-masks for several images",
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Format of the masks: png, rle, coco or labelme.", show_default="png"),
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            "--overlay",
            help="Image file for an overlay; a folder if several images are segmented.",
            show_default="none",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Segment objects marked by points, scribbles, a box or words, by a promptable model, graph cut or GrabCut."""
    from otus.data.sources import is_video
    from otus.errors import UsageError, did_you_mean
    from otus.interactive.mask_files import FORMATS, read_prompts

    prompt = prompt_of(point, points_for, box, scribbles, mask, text)
    if format_ is not None and format_ not in FORMATS:
        raise UsageError(
            f"--format: expected one of {', '.join(FORMATS)}, got {format_!r}{did_you_mean(format_, FORMATS)}"
        )
    format_ = format_ or "png"
    if detector is not None and text_encoder is not None:
        raise UsageError("--detector and --text-encoder: give one of them; it answers --text")
    methods = methods_for(
        method,
        detector,
        weights=weights,
        text_encoder=text_encoder,
        device=device,
        precision=precision or "auto",
        runtime=runtime,
        multimask=all_ or None,
        zoom_in=zoom_in or None,
    )
    if source.is_dir() or is_video(source):
        if prompts is None and not frames and text is None:
            raise UsageError(
                "several images need --prompts with a prompt for each, --text, or --frames and a prompt for the first"
            )
        if prompt is not None and not frames and text is None:
            raise UsageError("--point, --box etc. are for one image; give the prompts of several images by --prompts")
        segment_many(
            source,
            {} if prompts is None else read_prompts(prompts),
            prompt,
            frames=frames,
            method=method,
            stored_options={"detector": detector, "text_encoder": text_encoder, "weights": weights, "zoom_in": zoom_in},
            methods=methods,
            all_=all_,
            out=out,
            format_=format_,
            overlay=overlay,
            as_json=as_json,
        )
        return
    if prompts is not None or frames:
        raise UsageError("--prompts and --frames are for a folder or a video")
    if prompt is None:
        raise UsageError("there is no prompt: give --point, --points-for, --scribbles, --box, --mask or --text")
    if out is None and not as_json:
        out = Path(f"{source.stem}-mask{FORMATS[format_]}")
    if out is not None:
        out = output_file(out, f"{source.stem}-mask{FORMATS[format_]}")
    if overlay is not None:
        overlay = output_file(overlay, f"{source.stem}-overlay.png")
        if out == overlay:
            raise UsageError(f"--out and --overlay: expected two files, got {out} twice")
    for path in (out, overlay):
        if path is not None and path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"{path}: this would overwrite the image itself")
    from otus.data.images import read_image
    from otus.interactive.mask_files import write_masks

    image = read_image(source)
    document, candidates = segment_image(image, source.name, {None: prompt}, methods, all_=all_)
    if out is not None:
        write_masks(out, [document], format=format_)
    if overlay is not None:
        draw(image, candidates, overlay)
    if as_json:
        emit_json(document)
        return
    typer.echo(line(str(source), document))
    for path in (out, overlay):
        if path is not None:
            typer.echo(f"written to {path}")


def prompt_of(
    point: list[str] | None,
    points_for: list[str] | None,
    box: str | None,
    scribbles: Path | None,
    mask: Path | None,
    text: str | None = None,
) -> "Prompt | None":
    """Return the prompt of the options; None if none of them is given."""
    if not any((point, points_for, box, scribbles, mask)) and text is None:
        return None
    import numpy as np

    from otus.data.images import read_label_image
    from otus.errors import UsageError
    from otus.structures import Prompt
    from otus.structures.prompt import BACKGROUND, UNMARKED

    if points_for and any(value.split(",")[-1] not in ("0", "1") for value in point or ()):
        raise UsageError("--point with --points-for: expected X,Y,0 or X,Y,1")
    points = [_numbers("--point", "X,Y,0 or X,Y,1", value, 3) for value in point or ()]
    for value in points_for or ():
        number, colon, point_text = value.partition(":")
        expected = "NUMBER:X,Y, numbers from 1 on"
        if not colon or not number.strip().isdecimal() or int(number) < 1:
            raise UsageError(f"--points-for: expected {expected}, got {value!r}")
        points.append([*_numbers("--points-for", expected, point_text, 2), int(number)])
    if any(label != int(label) for *_, label in points):
        raise UsageError("--point: expected X,Y,0 or X,Y,1, the label an integer")
    scribble_labels = None
    if scribbles is not None:
        values = read_label_image(scribbles).astype(np.int16)
        scribble_labels = np.where(values == 0, UNMARKED, np.where(values == 255, BACKGROUND, values))
    return Prompt(
        points_xy=[[x, y] for x, y, _ in points],
        point_labels=[int(label) for *_, label in points],
        scribbles=scribble_labels,
        box_xyxy=None if box is None else _numbers("--box", "X1,Y1,X2,Y2", box, 4),
        mask=None if mask is None else read_label_image(mask) > 0,
        text=text,
    )


def _numbers(option: str, expected: str, text: str, count: int) -> list[float]:
    from otus.errors import UsageError

    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(isfinite, values)):
        raise UsageError(f"{option}: expected {expected}, got {text!r}")
    return values
