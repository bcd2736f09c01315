"""``otus propose``: boxes where objects may be, before anybody says what they are."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otus.cli._common import emit_json, given_options, output_file, verb

if TYPE_CHECKING:
    import numpy as np

    from otus.proposals.interface import Proposals

RPN = "rpn"


@verb
def propose(
    image_path: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image.")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="Proposal method: selective-search, sliding-window, or rpn (the region proposal network of a detector).",
        ),
    ] = "selective-search",
    mode: Annotated[
        str | None, typer.Option("--mode", help="Mode of selective search: fast or quality.", show_default="fast")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Random seed of selective search's ranking.", show_default="0")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Threads of selective search.", show_default="1")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Detector of rpn: a name, a file of weights, or a run folder.",
            show_default="mask_rcnn_efficientnet_lite0_fpn",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Weights to load for a named detector: a file, or the name of published weights.",
            show_default="the best available",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Device of rpn: cpu, cuda, mps or auto.", show_default="auto")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", help="Maximum number of proposals, the highest-scoring first.", show_default="all"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="PNG file to draw the highest-scoring proposals on; .png is added.", show_default="no drawing"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Propose boxes that may contain objects, the highest-scoring first."""
    import time

    from otus.data.images import read_image
    from otus.errors import UsageError, did_you_mean
    from otus.proposals.methods import METHODS, make_proposer

    if method not in (*METHODS, RPN):
        known = (*METHODS, RPN)
        raise UsageError(f"--method: expected one of {', '.join(known)}, got {method!r}{did_you_mean(method, known)}")
    if count is not None and count < 1:
        raise UsageError(f"--count: expected a number from 1 on, got {count}")
    if out is not None:
        out = output_file(out, f"proposals-{image_path.stem}.png")
    of_search = given_options(mode=mode, seed=seed, workers=workers)
    of_detector = given_options(weights=weights, device=device) | ({} if model is None else {"model": model})
    if method == RPN:
        if of_search:
            raise UsageError(f"--{', --'.join(of_search)}: only of --method selective-search")
        proposer = _detector(**of_detector)
    else:
        if of_detector:
            raise UsageError(f"--{', --'.join(of_detector)}: only of --method {RPN}")
        proposer = make_proposer(method, **of_search)
    image = read_image(image_path)
    start = time.perf_counter()
    found = proposer(image)
    seconds = time.perf_counter() - start
    found = found.best(count)
    if out is not None:
        _draw(image, found, out)
    if as_json:
        pairs = zip(found.boxes_xyxy.tolist(), found.scores.tolist(), strict=True)
        proposals = [{"box_xyxy": box, "score": score} for box, score in pairs]
        emit_json({"method": method, "count": len(found), "seconds": seconds, "proposals": proposals})
        return
    typer.echo(f"{image_path}: {len(found)} proposals by {method} in {seconds:.2f} s")
    for box, score in zip(found.boxes_xyxy[:10].tolist(), found.scores[:10].tolist(), strict=True):
        typer.echo(f"  {', '.join(f'{side:.0f}' for side in box)}  {score:.3f}")
    if len(found) > 10:
        typer.echo(f"  and {len(found) - 10} more (--json lists them)")
    if out is not None:
        typer.echo(f"written to {out}")


def _detector(**options: Any) -> "Callable[[np.ndarray], Proposals]":
    """Return the region proposal network of a detector as a proposer; imports torch."""
    from otus.inference.loading import load
    from otus.inference.region_proposals import RPNProposals

    return RPNProposals(load(options.pop("model", None), **options, precision="auto"))


def _draw(image: "np.ndarray", found: "Proposals", out: Path) -> None:
    from otus.data.image_writing import write_image
    from otus.reports.proposals import draw_proposals

    write_image(out, draw_proposals(image, found))
