"""``otus segment``: segment objects by points, boxes or scribbles, with a classical method or a promptable model."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otus.cli._common import emit_json, given_options, output_file, output_folder, track, verb
from otus.cli._options import MODEL, PROMPTABLE_MODEL, AsJson, Device, Precision, Runtime, Weights, ZoomIn

if TYPE_CHECKING:
    import numpy as np

    from otus.errors import DataError
    from otus.structures import MaskCandidates, Prompt, PromptableMethod

    Methods = Callable[[Prompt], PromptableMethod[Any]]
    Parts = Mapping[int | None, Prompt]
    """Prompts of an image by the number of the object; the numbers of a prompt under None are its own."""

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
    zoom_in: ZoomIn = None,
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
    methods = _methods(
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
        _segment_many(
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
    document, candidates = _segment(image, source.name, {None: prompt}, methods, all_=all_)
    if out is not None:
        write_masks(out, [document], format=format_)
    if overlay is not None:
        _draw(image, candidates, overlay)
    if as_json:
        emit_json(document)
        return
    typer.echo(_line(str(source), document))
    for path in (out, overlay):
        if path is not None:
            typer.echo(f"written to {path}")


def _segment_many(
    source: Path,
    prompts: "dict[str, Prompt]",
    first_prompt: "Prompt | None",
    *,
    frames: bool,
    method: str | None,
    stored_options: dict[str, str | bool | None],
    methods: "Methods",
    all_: bool,
    out: Path | None,
    format_: str,
    overlay: Path | None,
    as_json: bool,
) -> None:
    """Segment the images of a folder or a video; images whose masks are already in the folder are skipped.

    Parameters
    ----------
    source
        Folder or video.
    prompts
        Prompts by image name.
    first_prompt
        Prompt for the first frame, or for each image if it is text; of a video, for each frame until something is found.
    methods
        Returns the method for a prompt.
    stored_options
        Options ``detector``, ``text_encoder``, ``weights`` and ``zoom_in`` of :func:`segment`, stored with the masks.
    frames, method, all_, out, format_, overlay, as_json
        Options of :func:`segment`.
    """
    from otus.data.sources import is_video
    from otus.errors import DataError, UsageError
    from otus.interactive.mask_files import FORMATS, write_masks

    out = output_folder(out or Path("otus-masks"), "the masks")
    if overlay is not None:
        output_folder(overlay, "the overlays", option="--overlay")
        if overlay.resolve() in (out.resolve(), source.resolve()):
            raise UsageError(f"--overlay: expected a folder for overlays alone, got {overlay}")
    previous: Parts | None = None  # prompts for the objects of the previous frame
    documents: list[dict[str, Any]] = []
    errors: list[DataError] = []
    already_there = 0

    def skip(error: DataError) -> None:
        errors.append(error)
        typer.echo(f"otus: skipped: {error}", err=True)

    images = _frames_of(source, prompts, skip) if is_video(source) else _images_of(source, prompts, out)
    for name, read in track(images, "segmenting"):
        prompt = prompts.get(name)
        searched = first_prompt is not None and first_prompt.text is not None
        if prompt is None and (not frames or previous is None or (searched and not previous)):
            prompt = first_prompt
        if prompt is None and not frames:
            continue
        document_file = out / f"{name}.json"
        mask_files = {"png": out / f"{name}.png", "labelme": out / f"{name}.labelme.json"}
        try:
            parts: Parts = _followed(previous, name) if prompt is None else {None: prompt}
            document = _read_document(document_file)
            image = None
            if document is not None and _is_up_to_date(document, parts, method, {**stored_options, "all": all_}):
                already_there += 1
                candidates = _candidates(document)
            else:
                image = read()
                document, candidates = _segment(image, name, parts, methods, all_=all_)
                document |= {"prompt": _prompt_json(parts), "asked": method, **stored_options, "all": all_}
                for outdated in mask_files.values():
                    outdated.unlink(missing_ok=True)
                write_masks(document_file, [document], format="rle")
            if frames:
                previous = _prompts_for_next(candidates)
            if overlay is not None and (image is not None or not (overlay / f"{name}.png").exists()):
                _draw(read() if image is None else image, candidates, overlay / f"{name}.png")
            if format_ in mask_files and not mask_files[format_].exists():
                write_masks(mask_files[format_], [document], format=format_)
        except (DataError, UsageError, ValueError) as error:
            if isinstance(error, UsageError) and prompt is first_prompt is not None:
                raise
            skip(
                error if isinstance(error, DataError) else DataError(str(error), file=source / name, kind="bad_prompt")
            )
            continue
        documents.append(document)
        if not as_json:
            typer.echo(_line(name, document))
    if format_ == "coco" and documents:
        write_masks(out / f"annotations{FORMATS[format_]}", documents, format=format_)
    if as_json:
        emit_json({"images": documents})
    else:
        note = f", {already_there} of them already there" if already_there else ""
        typer.echo(f"{len(documents)} images in {out}{note}")
    if errors:
        raise typer.Exit(1)


def _images_of(
    folder: Path, prompts: "dict[str, Prompt]", out: Path
) -> "Iterator[tuple[str, Callable[[], np.ndarray]]]":
    """Yield the name of each image in a folder, except those in ``out``, and a function that reads it."""
    from otus.data.image_files import list_images
    from otus.data.images import read_image
    from otus.errors import UsageError

    files = {path.relative_to(folder).as_posix(): path for path in list_images(folder) if out not in path.parents}
    if unknown := sorted(set(prompts) - set(files)):
        raise UsageError(f"--prompts: {unknown[0]!r} is not an image in {folder}")
    for name, path in files.items():
        yield name, partial(read_image, path)


def _frames_of(
    video: Path, prompts: "dict[str, Prompt]", skip: "Callable[[DataError], None]"
) -> "Iterator[tuple[str, Callable[[], np.ndarray]]]":
    """Yield the index of each frame of a video, as six digits, and a function that returns the frame."""
    from otus.data.video import Video
    from otus.errors import DataError

    remaining, name = set(prompts), ""
    try:
        for frame in Video(video).frames():
            name = f"{frame.index:06d}"
            remaining.discard(name)
            yield name, lambda image=frame.image: image  # type: ignore[misc]
    except DataError as error:
        skip(error)
    if remaining:
        remedy = f"the last frame is {name}" if name else "check the video"
        message = f"--prompts: there is no frame {min(remaining)!r}"
        skip(DataError(message, file=video, remedy=remedy, kind="bad_prompt"))


def _read_document(path: Path) -> dict[str, Any] | None:
    """Return the document that an earlier run wrote; None if there is no valid one."""
    import msgspec

    try:
        document = msgspec.json.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return document if isinstance(document, dict) and {"candidates", "prompt", "method"} <= set(document) else None


def _is_up_to_date(document: dict[str, Any], parts: "Parts", method: str | None, options: dict[str, Any]) -> bool:
    """Return whether a document was computed by these prompts and method (None: the default), and the same other options."""
    from otus.interactive.methods import default_method

    default = default_method(next(iter(parts.values())))
    same_prompt = document["prompt"] == _prompt_json(parts)
    same_method = (document.get("asked") or default) == (method or default)
    same_options = all((document.get(name) or None) == (value or None) for name, value in options.items())
    return same_prompt and same_method and same_options


def _prompt_json(parts: "Parts") -> dict[str, Any]:
    """Return the prompt of an image, or the prompts of a frame's objects by number, as JSON."""
    if None in parts:
        return parts[None].to_json()
    return {str(number): prompt.to_json() for number, prompt in parts.items()}


def _prompts_for_next(candidates: "MaskCandidates") -> "Parts":
    """Return the best mask of each object that was found as its prompt on the next frame."""
    import numpy as np

    from otus.structures import Prompt

    best = {int(number): candidates.best(int(number)) for number in np.unique(candidates.objects)}
    return {number: Prompt(mask=mask) for number, mask in best.items() if mask.any()}


def _followed(previous: "Parts | None", name: str) -> "Parts":
    """Return the prompts for the objects of the previous frame, or raise DataError if there are none."""
    from otus.errors import DataError

    if previous is None:
        remedy = "give --point or --box, or its prompt in --prompts"
        raise DataError("the first frame has no prompt", file=name, remedy=remedy, kind="bad_prompt")
    if not previous:
        remedy = "give its prompt in --prompts"
        raise DataError("nothing was found on the previous frame", file=name, remedy=remedy, kind="bad_prompt")
    return previous


def _candidates(document: dict[str, Any]) -> "MaskCandidates":
    """Return the masks of a document."""
    import numpy as np

    from otus.structures import MaskCandidates, Masks

    records = document["candidates"]
    size_hw = (document["height"], document["width"])
    masks = Masks.from_rle([record["segmentation"]["counts"] for record in records], size_hw)
    scores = np.array([record["score"] for record in records])
    return MaskCandidates(masks, scores, np.array([record["object"] for record in records]))


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


def _methods(name: str | None, detector: str | None, **options: Any) -> "Methods":
    """Return a function from a prompt to the method for it; each method is loaded once."""

    @cache
    def load_method(method_name: str, *, with_detector: bool) -> "PromptableMethod[Any]":
        if not with_detector:
            return _load(method_name, **options)
        from otus.inference.detect_then_prompt import DetectThenPrompt
        from otus.inference.loading import load

        method = load_method(method_name, with_detector=False)
        return DetectThenPrompt(load(detector, **given_options(device=options["device"])), method)

    def method(prompt: "Prompt") -> "PromptableMethod[Any]":
        from otus.interactive.methods import default_method

        by_detector = prompt.text is not None and options["text_encoder"] is None
        needs_model = any(options[option] is not None for option in ("weights", "text_encoder", "zoom_in"))
        chosen = name or (PROMPTABLE_MODEL if needs_model else default_method(prompt))
        return load_method(chosen, with_detector=by_detector)

    return method


def _load(name: str, *, weights: str | None, text_encoder: str | None, **options: Any) -> "PromptableMethod[Any]":
    """Load a method; torch is imported only for models."""
    from otus.interactive.methods import METHODS, make_method

    if name in METHODS and weights is None and text_encoder is None and options["zoom_in"] is None:
        return make_method(name)
    from otus.inference.promptable import load_method

    return load_method(name, weights=weights, text_encoder=text_encoder, **given_options(**options))


def _segment(
    image: "np.ndarray", name: str, parts: "Parts", methods: "Methods", *, all_: bool
) -> "tuple[dict[str, Any], MaskCandidates]":
    """Segment an image; return its document and its masks, all candidates or the best per object."""
    import time

    from otus.interactive.mask_files import candidate_records
    from otus.structures import MaskCandidates

    prompt = next(iter(parts.values()))
    method = methods(prompt)
    start = time.perf_counter()
    embedding = method.embed(image)
    embedded = time.perf_counter()
    found = []
    for number, part in parts.items():
        candidates = method.segment(embedding, part)
        candidates = candidates if all_ else candidates.best_of_each()
        found.append(candidates if number is None else candidates.numbered(number))
    candidates = MaskCandidates.concatenate(found, (image.shape[0], image.shape[1]))
    seconds = {"embed": embedded - start, "segment": time.perf_counter() - embedded}
    head = {"file": name, "width": image.shape[1], "height": image.shape[0], "method": method.name, "seconds": seconds}
    if prompt.text is not None:
        from otus.inference.detect_then_prompt import DetectThenPrompt

        answered_by = f"detector {method.detector.name}" if isinstance(method, DetectThenPrompt) else "text encoder"
        head["text"] = {"words": prompt.text, "answered_by": answered_by}
    return head | {"candidates": candidate_records(candidates)}, candidates


def _draw(image: "np.ndarray", candidates: "MaskCandidates", out: Path) -> None:
    from otus.data.image_writing import write_image
    from otus.interactive.mask_files import as_instances
    from otus.visualization.drawing import overlay

    write_image(out, overlay(image, as_instances(candidates)))


def _line(name: str, document: dict[str, Any]) -> str:
    """Return ``a.jpg 640x480: object 1 41,210 pixels, score 0.87 (graph-cut, 62 ms)``."""
    parts = [
        f"object {record['object']} {record['area']:,} pixels, score {record['score']:.2f}"
        for record in document["candidates"]
    ]
    text = document.get("text")
    if text is not None and not parts:
        parts = [f"found no {text['words']}, no masks"]
    milliseconds = 1000 * sum(document["seconds"].values())
    method = f"{document['method']}, {'' if text is None else text['answered_by'] + ', '}{milliseconds:.0f} ms"
    return f"{name} {document['width']}x{document['height']}: {'; '.join(parts)} ({method})"
