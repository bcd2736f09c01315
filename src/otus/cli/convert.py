"""``otus convert``: convert a data set to another format."""

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otus.cli._common import emit_json, verb

if TYPE_CHECKING:
    from otus.data.conversion import ConversionResult
    from otus.data.dataset import Dataset
    from otus.data.formats.interface import ConversionLoss

_SHOWN = 3  # losses of each kind; all of them are in the file


@verb
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Data set to convert: an annotation file or a folder.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; must be new.")],
    to: Annotated[str, typer.Option(help="Target format: coco, voc, yolo, sa1b, labelme or coco_panoptic.")],
    format: Annotated[
        str | None, typer.Option(help="Format of SRC, where several are found.", show_default="detected")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split to convert, e.g. val.", show_default="all")] = None,
    images: Annotated[
        str | None, typer.Option(help="Images in the new folder: copy, link or none.", show_default="copy")
    ] = None,
    allow_outside: Annotated[bool, typer.Option("--allow-outside", help="Follow paths that lead outside SRC.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Convert labels to another format, all splits unless one is chosen.

    What the target format does not support is reported object by object.
    """
    from otus.data.conversion import convert as convert_dataset
    from otus.errors import UsageError

    if images not in (None, "copy", "link", "none"):
        raise UsageError(f"--images: expected copy, link or none, got {images!r}")
    options: dict[str, Any] = {} if images is None else {"images": images}
    result = convert_dataset(source, target, to=to, format=format, split=split, allow_outside=allow_outside, **options)
    for problem in result.problems:
        print(f"otus: left out: {problem}", file=sys.stderr)
    if as_json:
        emit_json(_document(result, target, to))
    else:
        print(_text(result, target, to))
    if result.problems:
        raise typer.Exit(1)


def _document(result: "ConversionResult", target: Path, to: str) -> dict[str, Any]:
    return {
        "source": str(result.datasets[0].source),
        "from": result.datasets[0].format,
        "to": to,
        "target": str(target),
        **_counts(result.datasets),
        "splits": {dataset.split: _counts([dataset]) for dataset in result.datasets if dataset.split},
        "losses": dict(Counter(loss.kind for loss in result.losses)),
        "lost": [
            {"kind": loss.kind, "image": loss.image, "object_id": loss.object_id, "message": loss.message}
            for loss in result.losses
        ],
        "problems": [{"kind": problem.kind, "message": str(problem)} for problem in result.problems],
    }


def _counts(datasets: "Sequence[Dataset]") -> dict[str, int]:
    objects = [dataset.objects for dataset in datasets if dataset.objects is not None]
    return {"images": sum(map(len, datasets)), "objects": sum(map(len, objects))}


def _text(result: "ConversionResult", target: Path, to: str) -> str:
    from otus.data.conversion import losses_path

    counts = _counts(result.datasets)
    lines = [f"{target}: {counts['images']} images, {counts['objects']} objects, {result.datasets[0].format} to {to}"]
    splits = [f"{dataset.split} {len(dataset)}" for dataset in result.datasets if dataset.split]
    if splits:
        lines.append(f"splits: {', '.join(splits)}")
    kinds = Counter(loss.kind for loss in result.losses).most_common()
    if kinds:
        lines.append(f"not supported by {to} (all are in {losses_path(target)}):")
        lines += [f"  {kind:<20}{count:>8}" for kind, count in kinds]
    for kind, count in kinds:
        lines.append(f"{kind}:")
        lines += [
            f"  {_loss_text(loss)}" for loss in islice((loss for loss in result.losses if loss.kind == kind), _SHOWN)
        ]
        if count > _SHOWN:
            lines.append(f"  and {count - _SHOWN} more")
    return "\n".join(lines)


def _loss_text(loss: "ConversionLoss") -> str:
    object_text = f", object {loss.object_id}" if loss.object_id is not None else ""
    return f"{loss.image}{object_text}: {loss.message}" if loss.image else loss.message
