"""``otus segment`` on the images of a folder or the frames of a video."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from otus.cli._common import emit_json, output_folder, track
from otus.cli._segment_image import draw, line, segment_image

if TYPE_CHECKING:
    import numpy as np

    from otus.cli._segment_image import Methods, Parts
    from otus.errors import DataError
    from otus.structures import MaskCandidates, Prompt


def segment_many(
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
                document, candidates = segment_image(image, name, parts, methods, all_=all_)
                document |= {"prompt": _prompt_json(parts), "asked": method, **stored_options, "all": all_}
                for outdated in mask_files.values():
                    outdated.unlink(missing_ok=True)
                write_masks(document_file, [document], format="rle")
            if frames:
                previous = _prompts_for_next(candidates)
            if overlay is not None and (image is not None or not (overlay / f"{name}.png").exists()):
                draw(read() if image is None else image, candidates, overlay / f"{name}.png")
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
            typer.echo(line(name, document))
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
