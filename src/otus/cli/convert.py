"""``otus convert``: from one format of labels to another."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otus.cli._common import emit_json, verb

if TYPE_CHECKING:
    from otus.data.conversion import Conversion

_SHOWN = 3  # losses of each kind; all of them are in the file


@verb
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="An annotation file, or a folder.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The new folder.")],
    to: Annotated[str, typer.Option(help="coco, voc, yolo, sa1b, labelme or coco_panoptic.")],
    format: Annotated[str | None, typer.Option(help="Which format, where SRC holds several.")] = None,
    split: Annotated[str | None, typer.Option(help="Which part, where SRC has several: train, val …")] = None,
    pictures: Annotated[str | None, typer.Option(help="copy (default), link or none.")] = None,
    allow_outside: Annotated[bool, typer.Option("--allow-outside", help="Follow paths that leave SRC.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Convert labels to another format; what the target cannot hold is reported object by object."""
    from otus.data.conversion import convert as convert_dataset
    from otus.errors import UsageError

    if pictures not in (None, "copy", "link", "none"):
        raise UsageError(f"--pictures: expected copy, link or none, got {pictures!r}")
    chosen: dict[str, Any] = {} if pictures is None else {"pictures": pictures}
    done = convert_dataset(source, target, to=to, format=format, split=split, allow_outside=allow_outside, **chosen)
    for problem in done.problems:
        print(f"otus: left out: {problem}", file=sys.stderr)
    if as_json:
        emit_json(_document(done, target, to))
    else:
        print(_text(done, target, to))
    if done.problems:
        raise typer.Exit(1)


def _document(done: "Conversion", target: Path, to: str) -> dict[str, Any]:
    return {
        "source": str(done.dataset.source),
        "from": done.dataset.format,
        "to": to,
        "target": str(target),
        **_counts(done),
        "losses": dict(Counter(loss.kind for loss in done.losses)),
        "lost": [
            {"kind": loss.kind, "picture": loss.picture, "object_id": loss.object_id, "message": loss.message}
            for loss in done.losses
        ],
        "problems": [{"kind": problem.kind, "message": str(problem)} for problem in done.problems],
    }


def _counts(done: "Conversion") -> dict[str, int]:
    objects = done.dataset.objects
    return {"images": len(done.dataset), "objects": 0 if objects is None else len(objects)}


def _text(done: "Conversion", target: Path, to: str) -> str:
    from otus.data.conversion import losses_file

    counts = _counts(done)
    lines = [f"{target}: {counts['images']} pictures, {counts['objects']} objects, {done.dataset.format} to {to}"]
    kinds = Counter(loss.kind for loss in done.losses)
    if kinds:
        lines.append(f"not held by {to} ({losses_file(target)} has all):")
    for kind, count in kinds.items():
        lines.append(f"  {kind}: {count}")
        examples = [loss for loss in done.losses if loss.kind == kind][:_SHOWN]
        for loss in examples:
            whose = f"{loss.picture}, object {loss.object_id}: " if loss.object_id is not None else ""
            lines.append(f"    {whose or (loss.picture and loss.picture + ': ')}{loss.message}")
    return "\n".join(lines)
