"""``otus propose``: region proposals, boxes that may contain objects."""

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
    search_options = given_options(mode=mode, seed=seed, workers=workers)
    detector_options = given_options(weights=weights, device=device) | ({} if model is None else {"model": model})
    if method == RPN:
        if search_options:
            raise UsageError(f"--{', --'.join(search_options)}: only with --method selective-search")
        proposer = _load_rpn(**detector_options)
    else:
        if detector_options:
            raise UsageError(f"--{', --'.join(detector_options)}: only with --method {RPN}")
        proposer = make_proposer(method, **search_options)
    image = read_image(image_path)
    start = time.perf_counter()
    proposals = proposer(image)
    seconds = time.perf_counter() - start
    proposals = proposals.best(count)
    if out is not None:
        _draw(image, proposals, out)
    pairs = list(zip(proposals.boxes_xyxy.tolist(), proposals.scores.tolist(), strict=True))
    if as_json:
        records = [{"box_xyxy": box, "score": score} for box, score in pairs]
        emit_json({"method": method, "count": len(proposals), "seconds": seconds, "proposals": records})
        return
    typer.echo(f"{image_path}: {len(proposals)} proposals by {method} in {seconds:.2f} s")
    for box, score in pairs[:10]:
        typer.echo(f"  {', '.join(f'{coordinate:.0f}' for coordinate in box)}  {score:.3f}")
    if len(proposals) > 10:
        typer.echo(f"  and {len(proposals) - 10} more (--json lists them)")
    if out is not None:
        typer.echo(f"written to {out}")


def _load_rpn(**options: Any) -> "Callable[[np.ndarray], Proposals]":
    """Return the region proposal network of a detector as a proposer; imports torch."""
    from otus.inference.loading import load
    from otus.inference.region_proposals import RPNProposals

    return RPNProposals(load(options.pop("model", None), **options, precision="auto"))


def _draw(image: "np.ndarray", proposals: "Proposals", out: Path) -> None:
    from otus.data.image_writing import write_image
    from otus.reports.proposals import draw_proposals

    write_image(out, draw_proposals(image, proposals))
