"""``otus explain …``: pages that show how a model arrives at its prediction, or how a metric is computed."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otus.cli._common import emit_json, examples, given_options, output_file, print_notes, verb
from otus.cli._options import (
    PROMPTABLE_MODEL,
    AsJson,
    Data,
    Device,
    Format,
    IoU,
    Masks,
    Model,
    Precision,
    Predictions,
    Protocol,
    ScoreThreshold,
    SemanticModel,
    Split,
    Weights,
    html_page,
)
from otus.cli.segment import Box, Points, PointsFor, Scribbles, prompt_of

if TYPE_CHECKING:
    from otus.data.dataset import Dataset
    from otus.reports.explain.detection import Explanation

app = typer.Typer(help="Show how a model arrives at its prediction, or how a metric is computed.", no_args_is_help=True)


@app.callback()
def explain() -> None:
    """Show how a model arrives at its prediction, or how a metric is computed."""


@app.command(
    epilog=examples(
        "otus explain taxonomy 000007.jpg --data photos",
        "otus explain taxonomy 000007.jpg --data photos --split val --out taxonomy.png",
    )
)
@verb
def taxonomy(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image of the data set: its name or path.")],
    data: Data,
    out: Annotated[
        Path | None, typer.Option("--out", help="PNG file to write; .png is added.", show_default="taxonomy-IMAGE.png")
    ] = None,
    format_: Format = None,
    split: Split = None,
    as_json: AsJson = False,
) -> None:
    """Draw the labels of an image for each task: classification, semantic, detection, instance, panoptic."""
    from otus.data.image_lookup import find_image_index
    from otus.data.image_writing import write_image
    from otus.data.open import open_dataset
    from otus.reports.explain.taxonomy import derive_truths
    from otus.reports.explain.taxonomy_page import draw_truths

    dataset = open_dataset(data, format=format_, split=split)
    sample = dataset[find_image_index(dataset, image)]
    path = output_file(out, f"taxonomy-{Path(sample.key).stem}.png")
    truths = derive_truths(sample, dataset.categories)
    write_image(path, draw_truths(truths))
    if as_json:
        height, width = sample.size_hw
        document = {"file": sample.key, "width": width, "height": height, "image": str(path)}
        emit_json(document | truths.document())
        return
    for task, origin in truths.origins.items():
        typer.echo(f"{task}: {origin}")
    typer.echo(f"written to {path}")


@app.command(
    epilog=examples(
        "otus explain detection street.jpg",
        "otus explain detection street.jpg --model fcos_efficientnet_lite0_fpn --data annotations.json",
    )
)
@verb
def detection(
    image_path: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image.")],
    model: Model = None,
    weights: Weights = None,
    score_threshold: ScoreThreshold = None,
    out: Annotated[Path | None, html_page("detection-IMAGE.html")] = None,
    device: Device = None,
    precision: Precision = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Ground truth of the image: show which anchors, cells or queries are assigned to its objects.",
        ),
    ] = None,
    format_: Format = None,
    split: Split = None,
    as_json: AsJson = False,
) -> None:
    """Show a detector's stages on one image: feature maps, anchors, proposals, grid or queries, scores, boxes, masks."""
    from otus.data.images import read_image
    from otus.inference.loading import load
    from otus.reports.explain.detection import explain_detection
    from otus.reports.explain.explanation import ground_truth_of
    from otus.reports.explain.figures import threshold_text

    path = output_file(out, f"detection-{image_path.stem}.html")
    dataset = _open_labels(data, format_, split)
    predictor = load(model, **given_options(weights=weights, device=device), precision=precision or "auto")
    image = read_image(image_path)
    options = {"name": str(image_path), **given_options(score_threshold=score_threshold)}
    ground_truth = None
    if dataset is not None:
        ground_truth = ground_truth_of(
            dataset, str(image_path), predictor.categories, log=partial(typer.echo, err=True)
        )
    stages = explain_detection(predictor, image, ground_truth=ground_truth, **options)
    page, document = stages.page(), stages.document()
    page.write(path)
    if as_json:
        emit_json({**document, "page": str(path)})
        return
    for section in page.sections:
        typer.echo(f"{section.title}: {section.text}" if section.text else section.title)
    if not document["detections"]:
        typer.echo(f"nothing scores above {threshold_text(document)}: try a lower --score-threshold")
    typer.echo(f"written to {path}")


@app.command(
    epilog=examples(
        "otus explain semantic street.jpg --model runs/semantic/segnet_small",
        "otus explain semantic street.jpg --model segnet.safetensors --data photos --split val",
    )
)
@verb
def semantic(
    image_path: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image.")],
    model: Annotated[
        str,
        typer.Option("--model", help="Semantic model: a name (see otus models), a file of weights, or a run folder."),
    ],
    weights: Weights = None,
    out: Annotated[Path | None, html_page("semantic-IMAGE.html")] = None,
    device: Device = None,
    precision: Precision = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Ground truth of the image: show where the prediction is wrong.")
    ] = None,
    format_: Format = None,
    split: Split = None,
    as_json: AsJson = False,
) -> None:
    """Show a segmenter's stages on one image: encoder and decoder maps, class scores, confidence, labels, errors."""
    from otus.data.images import read_image
    from otus.inference.loading import load
    from otus.reports.explain.semantic import explain_semantic, semantic_ground_truth_of

    path = output_file(out, f"semantic-{image_path.stem}.html")
    dataset = _open_labels(data, format_, split)
    predictor = load(model, **given_options(weights=weights, device=device), precision=precision or "auto")
    image = read_image(image_path)
    ground_truth = None if dataset is None else semantic_ground_truth_of(dataset, str(image_path), predictor)
    explanation = explain_semantic(predictor, image, name=str(image_path), ground_truth=ground_truth)
    _write(explanation, path, as_json=as_json)


@app.command(
    epilog=examples("otus explain upsampling", "otus explain upsampling street.jpg --out six-ways-up.html"),
)
@verb
def upsampling(
    image_path: Annotated[
        Path | None, typer.Argument(metavar="[IMAGE]", help="An image.", show_default="a synthetic scene")
    ] = None,
    out: Annotated[Path | None, html_page("upsampling-IMAGE.html")] = None,
    as_json: AsJson = False,
) -> None:
    """Show six kinds of upsampling of a feature map, bed of nails to transposed convolution, as numbers and images."""
    from otus.data.images import read_image
    from otus.data.scenes.generator import Scenes
    from otus.inference.loading import load
    from otus.reports.explain.upsampling import explain_upsampling

    path = output_file(out, f"upsampling-{'scene' if image_path is None else image_path.stem}.html")
    image = Scenes(1)[0].image if image_path is None else read_image(image_path)
    name = "a synthetic scene" if image_path is None else str(image_path)
    _write(explain_upsampling(load(), image, name=name), path, as_json=as_json)


@app.command(
    epilog=examples(
        "otus explain panoptic street.jpg --semantic-model runs/semantic/street --score-threshold 0.3",
        "otus explain panoptic street.jpg --model runs/panoptic/panoptic_fpn_efficientnet_lite0 --out merge.html",
    )
)
@verb
def panoptic(
    image_path: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image.")],
    model: Model = None,
    semantic_model: SemanticModel = None,
    weights: Weights = None,
    score_threshold: ScoreThreshold = None,
    out: Annotated[Path | None, html_page("panoptic-IMAGE.html")] = None,
    device: Device = None,
    precision: Precision = None,
    as_json: AsJson = False,
) -> None:
    """Show a panoptic prediction on one image: its instances, its semantic map, and how they are merged."""
    from otus.data.images import read_image
    from otus.inference.loading import load
    from otus.reports.explain.panoptic import explain_panoptic

    path = output_file(out, f"panoptic-{image_path.stem}.html")
    options = given_options(weights=weights, semantic_model=semantic_model, device=device)
    predictor = load(model, **options, precision=precision or "auto")
    threshold = given_options(score_threshold=score_threshold)
    explanation = explain_panoptic(predictor, read_image(image_path), name=str(image_path), **threshold)
    _write(explanation, path, as_json=as_json)


def _open_labels(data: Path | None, format_: str | None, split: str | None) -> "Dataset | None":
    """Open the data set with the ground truth of the image, if given; raise UsageError if only its options are given."""
    from otus.data.open import open_dataset
    from otus.errors import UsageError

    if data is not None:
        return open_dataset(data, format=format_, split=split)
    if format_ is not None or split is not None:
        raise UsageError("--format and --split are options of the labels: give --data too")
    return None


def _write(explanation: "Explanation", path: Path, *, as_json: bool) -> None:
    """Write the page of an explanation, and print its sections or its document."""
    page = explanation.page()
    page.write(path)
    if as_json:
        emit_json({**explanation.document(), "page": str(path)})
        return
    for section in page.sections:
        typer.echo(f"{section.title}: {section.text}" if section.text else section.title)
    typer.echo(f"written to {path}")


@app.command(
    "graph-cut",
    epilog=examples(
        "otus explain graph-cut owl.jpg --point 250,180,1 --point 20,20,0",
        "otus explain graph-cut owl.jpg --points-for 1:250,180 --points-for 2:400,200 --out cut.html",
    ),
)
@verb
def graph_cut(
    image_path: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image.")],
    point: Points = None,
    points_for: PointsFor = None,
    scribbles: Scribbles = None,
    out: Annotated[Path | None, html_page("graph-cut-IMAGE.html")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how GraphCut segments: marks, geodesic distances, colour models, edges, the cut."""
    from otus.data.images import read_image
    from otus.errors import UsageError
    from otus.reports.explain.graph_cut import explain_graph_cut

    path = output_file(out, f"graph-cut-{image_path.stem}.html")
    prompt = prompt_of(point, points_for, None, scribbles, None)
    if prompt is None:
        raise UsageError("there is no prompt: give --point, --points-for or --scribbles")
    explanation = explain_graph_cut(read_image(image_path), prompt, name=str(image_path))
    _write(explanation, path, as_json=as_json)


@app.command(
    epilog=examples(
        "otus explain prompt owl.jpg --point 250,180,1",
        "otus explain prompt owl.jpg --method sam.safetensors --point 250,180,1 --point 20,20,0 --out prompt.html",
    )
)
@verb
def prompt(
    image_path: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image.")],
    method: Annotated[
        str, typer.Option("--method", help="Promptable model: a name (see otus models) or a file of weights.")
    ] = PROMPTABLE_MODEL,
    point: Points = None,
    box: Box = None,
    weights: Weights = None,
    device: Device = None,
    precision: Precision = None,
    out: Annotated[Path | None, html_page("prompt-IMAGE.html")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a promptable model predicts: candidates and scores, attention, and what each further click changed."""
    from otus.data.images import read_image
    from otus.errors import UsageError
    from otus.inference.promptable import load_sam
    from otus.reports.explain.prompt import explain_prompt

    path = output_file(out, f"prompt-{image_path.stem}.html")
    marked = prompt_of(point, None, box, None, None)
    if marked is None:
        raise UsageError("there is no prompt: give --point or --box")
    sam = load_sam(method, weights=weights, **given_options(device=device, precision=precision))
    explanation = explain_prompt(read_image(image_path), marked, name=str(image_path), method=sam)
    _write(explanation, path, as_json=as_json)


@app.command(
    epilog=examples(
        "otus explain ap --data annotations.json --predictions results.json --category dog",
        "otus explain ap --data annotations.json --predictions results.json --category dog --iou 0.75",
    )
)
@verb
def ap(
    data: Data,
    predictions: Predictions,
    category: Annotated[str, typer.Option("--category", help="Category whose AP is explained.")],
    iou: IoU = None,
    protocol: Protocol = None,
    show: Annotated[
        int | None,
        typer.Option(
            "--show", help="Detections to show with their images; the others are summarised.", show_default="40"
        ),
    ] = None,
    out: Annotated[Path | None, html_page("ap-CATEGORY.html")] = None,
    format_: Format = None,
    split: Split = None,
    as_json: AsJson = False,
) -> None:
    """Compute average precision step by step: each detection true or false, the point on the curve, the area so far."""
    from dataclasses import replace

    from otus.data.open import open_dataset
    from otus.evaluation.comparing import compare_with_labels, prediction_notes
    from otus.metrics.detection.rules import parse_rules
    from otus.reports.explain.average_precision import explain_average_precision

    path = output_file(out, f"ap-{category.replace('/', '-').replace(' ', '-')}.html")
    protocol = protocol or "coco"
    rules = replace(parse_rules(protocol), iou_thresholds=(0.5 if iou is None else iou,))
    dataset = open_dataset(data, format=format_, split=split)
    matcher = compare_with_labels(dataset, predictions)
    notes = print_notes(prediction_notes(matcher))
    explanation = explain_average_precision(
        dataset,
        matcher,
        category=category,
        protocol=protocol,
        rules=rules,
        **given_options(show=show),
    )
    explanation.page().write(path)
    if as_json:
        emit_json({**explanation.document(), "page": str(path), **notes})
        return
    document = explanation.document()
    typer.echo(
        f"{category}, protocol {protocol}, IoU {document['iou']:g}: AP {document['AP']:.4f}; {document['true']} of "
        f"{document['objects']} objects detected, {document['false']} false detections, {document['ignored']} ignored"
    )
    typer.echo(f"written to {path}")


@app.command(
    epilog=examples(
        "otus explain difference --data annotations.json --predictions results.json --protocols coco,voc07",
        "otus explain difference --data annotations.json --predictions results.json --protocols coco,coco:max_dets=10",
    )
)
@verb
def difference(
    data: Data,
    predictions: Predictions,
    protocols: Annotated[
        str,
        typer.Option(
            "--protocols",
            help="Two of coco, voc07 and voc12, each with settings if needed, e.g. coco,voc07 or coco,coco:max_dets=10.",
        ),
    ],
    out: Annotated[Path | None, html_page("difference.html")] = None,
    format_: Format = None,
    split: Split = None,
    as_json: AsJson = False,
) -> None:
    """Show why two protocols differ on the same predictions, changing one rule after the other."""
    from otus.data.open import open_dataset
    from otus.errors import UsageError
    from otus.evaluation.comparing import compare_with_labels, prediction_notes
    from otus.metrics.detection.rules import parse_rules
    from otus.reports.explain.difference import explain_difference

    path = output_file(out, "difference.html")
    names = protocols.split(",")
    if len(names) != 2:
        raise UsageError(f"--protocols: expected two names separated by a comma, e.g. coco,voc07, got {protocols!r}")
    a, b = names
    rules = parse_rules(a), parse_rules(b)
    dataset = open_dataset(data, format=format_, split=split)
    matcher = compare_with_labels(dataset, predictions)
    notes = print_notes(prediction_notes(matcher))
    explanation = explain_difference(dataset, matcher, (a, b), rules)
    explanation.page().write(path)
    document = explanation.document()
    if as_json:
        emit_json({**document, "page": str(path), **notes})
        return
    typer.echo(f"{a}: {document['a']['AP']:.6f}")
    for step in document["steps"]:
        typer.echo(f"{step['change']:+.6f}  {step['rule']}: {step['from']} -> {step['to']}")
    typer.echo(f"{b}: {document['b']['AP']:.6f}")
    typer.echo(f"written to {path}")


@app.command(
    epilog=examples(
        "otus explain errors --data annotations.json --predictions results.json",
        "otus explain errors --data annotations.json --predictions results.json --masks --out masks.html",
    )
)
@verb
def errors(
    data: Data,
    predictions: Predictions,
    iou: IoU = None,
    background_iou: Annotated[
        float | None,
        typer.Option(
            "--background-iou",
            help="Below this IoU with every object, a detection is a background error.",
            show_default="0.1",
        ),
    ] = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            "--score-threshold",
            help="Minimum score, for confusion matrix, worst images and label errors.",
            show_default="0.5",
        ),
    ] = None,
    masks: Masks = False,
    out: Annotated[Path | None, html_page("errors.html")] = None,
    format_: Format = None,
    split: Split = None,
    as_json: AsJson = False,
) -> None:
    """Show the errors of predictions and their cost in AP: types, confusion, calibration, worst images, doubtful labels."""
    from otus.data.open import open_dataset
    from otus.evaluation.comparing import compare_with_labels, prediction_notes
    from otus.reports.analysis import Analysis
    from otus.reports.explain.errors import ErrorExplanation

    path = output_file(out, "errors.html")
    dataset = open_dataset(data, format=format_, split=split)
    options = given_options(iou=iou, background_iou=background_iou, score_threshold=score_threshold)
    matcher = compare_with_labels(dataset, predictions)
    notes = print_notes(prediction_notes(matcher))
    explanation = ErrorExplanation(dataset, Analysis(matcher, masks=masks, **options))
    explanation.page().write(path)
    document = explanation.document()
    if as_json:
        emit_json({**document, "page": str(path), **notes})
        return
    typer.echo(
        f"protocol coco, {document['kind']}: mAP {document['AP']:.4f}; {document['AP_at_iou']:.4f} at IoU "
        f"{document['iou']:g}"
    )
    for name, error in document["errors"].items():
        typer.echo(f"{name:<15} {error['count']:>7}   dAP {error['cost']:.4f}")
    typer.echo(f"{document['label_errors']['count']} labels to check; written to {path}")
