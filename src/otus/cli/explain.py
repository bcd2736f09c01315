"""``otus explain …``: see how a system, or a number, came about."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from otus.cli._common import emit_json, examples, output_file, tell_notes, verb

app = typer.Typer(help="See how a system, or a number, came about.", no_args_is_help=True)


@app.callback()
def explain() -> None:
    """See how a system, or a number, came about."""


@app.command(
    epilog=examples(
        "otus explain taxonomy 000007.jpg --data photos",
        "otus explain taxonomy 000007.jpg --data photos --split val --out answers.png",
    )
)
@verb
def taxonomy(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image of the data set: its name or path.")],
    data: Annotated[Path, typer.Option("--data", help="Images with ground truth: a folder or an annotation file.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="PNG file to write; .png is added.", show_default="taxonomy-IMAGE.png")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Format of the labels, where several are found.", show_default="recognised"),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Part of the data, e.g. val.", show_default="the only one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """One image's labels as each task would answer: classification, semantic, detection, instance, panoptic."""
    from otus.data.image_lookup import find_image
    from otus.data.image_writing import write_image
    from otus.data.open import open_dataset
    from otus.reports.explain.taxonomy import answers_for
    from otus.reports.explain.taxonomy_page import draw_answers

    dataset = open_dataset(data, format=format_, split=split)
    sample = dataset[find_image(dataset, image)]
    path = output_file(out, f"taxonomy-{Path(sample.key).stem}.png")
    answers = answers_for(sample, dataset.categories)
    write_image(path, draw_answers(answers))
    if as_json:
        height, width = sample.size_hw
        document = {"file": sample.key, "width": width, "height": height, "image": str(path)}
        emit_json(document | answers.document())
        return
    for task, origin in answers.origins.items():
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
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Model: a name (see otus models), a file of weights, or the folder of a training run.",
            show_default="mask_rcnn_efficientnet_lite0_fpn",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Weights to load for a named model: a file, or the name of published weights.",
            show_default="the best available",
        ),
    ] = None,
    score_threshold: Annotated[
        float | None, typer.Option(help="Minimum score.", show_default="0.5, or those chosen for the weights")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="HTML page to write; .html is added.", show_default="detection-IMAGE.html"),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Device: cpu, cuda, mps or auto.", show_default="auto")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", help="Precision: exact, float32, bfloat16 or auto, the fastest.", show_default="auto"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Ground truth of the image: show which anchors, cells or queries are assigned to it."
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Format of the labels, where several are found.", show_default="recognised"),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Part of the data, e.g. val.", show_default="the only one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """The stages of one image: maps, anchors, proposals, the grid or the queries, scores, boxes and masks."""
    from otus.cli._common import option_values
    from otus.data.images import read_image
    from otus.data.open import open_dataset
    from otus.detection.regression import SingleObjectDetector
    from otus.detection.set_prediction.set_detector import SetDetector
    from otus.detection.single_stage.dense_detector import DenseDetector
    from otus.detection.single_stage.yolo import YOLO
    from otus.errors import UsageError
    from otus.inference.loading import load
    from otus.reports.explain.dense import DenseExplanation, explain_dense
    from otus.reports.explain.one_pass import labels_of
    from otus.reports.explain.pieces import threshold_told
    from otus.reports.explain.region_based import DetectionStages, explain_detection
    from otus.reports.explain.regression import RegressionExplanation, explain_regression
    from otus.reports.explain.set_prediction import SetExplanation, explain_set
    from otus.reports.explain.yolo import YoloExplanation, explain_yolo

    path = output_file(out, f"detection-{image_path.stem}.html")
    if data is None and (format_ is not None or split is not None):
        raise UsageError("--format and --split are of the labels: give --data too")
    predictor = load(model, **option_values(weights=weights, device=device), precision=precision or "auto")
    image = read_image(image_path)
    options = {"name": str(image_path), **option_values(score_threshold=score_threshold)}
    truth = None
    if data is not None:
        dataset = open_dataset(data, format=format_, split=split)
        truth = labels_of(dataset, str(image_path), predictor.categories, say=partial(typer.echo, err=True))
    stages: DenseExplanation | DetectionStages | RegressionExplanation | SetExplanation | YoloExplanation
    if isinstance(predictor.system, DenseDetector):
        stages = explain_dense(predictor, image, truth=truth, **options)
    elif isinstance(predictor.system, SetDetector):
        stages = explain_set(predictor, image, truth=truth, **options)
    elif isinstance(predictor.system, YOLO):
        stages = explain_yolo(predictor, image, truth=truth, **options)
    elif isinstance(predictor.system, SingleObjectDetector):
        stages = explain_regression(predictor, image, truth=truth, **options)
    elif data is not None:
        raise UsageError(
            f"--data: {predictor.name} decides by regions, which are not drawn beside labels: leave it out"
        )
    else:
        stages = explain_detection(predictor, image, **options)
    page, document = stages.page(), stages.document()
    page.write(path)
    if as_json:
        emit_json({**document, "page": str(path)})
        return
    for section in page.sections:
        typer.echo(f"{section.title}: {section.text}" if section.text else section.title)
    if not document["detections"]:
        told = threshold_told(document)
        typer.echo(f"nothing scores above {told}: a lower --score-threshold shows what comes near")
    typer.echo(f"written to {path}")


@app.command(
    epilog=examples(
        "otus explain ap --data annotations.json --predictions results.json --category dog",
        "otus explain ap --data annotations.json --predictions results.json --category dog --iou 0.75",
    )
)
@verb
def ap(
    data: Annotated[Path, typer.Option("--data", help="Images with ground truth: a folder or an annotation file.")],
    predictions: Annotated[
        Path, typer.Option("--predictions", help="Predictions: COCO results, a JSON list of detections.")
    ],
    category: Annotated[str, typer.Option("--category", help="Category whose AP is built.")],
    iou: Annotated[float | None, typer.Option("--iou", help="IoU threshold of a match.", show_default="0.5")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="Protocol: coco, voc07 or voc12, with settings, e.g. coco:max_dets=10.",
            show_default="coco",
        ),
    ] = None,
    show: Annotated[
        int | None,
        typer.Option("--show", help="Detections shown with images; the others are summarised.", show_default="40"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML page to write; .html is added.", show_default="ap-CATEGORY.html")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Format of the labels, where several are found.", show_default="recognised"),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Part of the data, e.g. val.", show_default="the only one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Average precision built detection by detection: each one's verdict, its point on the curve, the area so far."""
    from dataclasses import replace

    from otus.cli._common import option_values
    from otus.data.open import open_dataset
    from otus.evaluation.comparing import compare_with_labels, notes_on
    from otus.metrics.detection.rules import parse_rules
    from otus.reports.explain.average_precision import explain_average_precision

    path = output_file(out, f"ap-{category.replace('/', '-').replace(' ', '-')}.html")
    protocol = protocol or "coco"
    rules = replace(parse_rules(protocol), iou_thresholds=(0.5 if iou is None else iou,))
    dataset = open_dataset(data, format=format_, split=split)
    comparison = compare_with_labels(dataset, predictions)
    notes = tell_notes(notes_on(comparison))
    built = explain_average_precision(
        dataset,
        comparison,
        category=category,
        protocol=protocol,
        rules=rules,
        **option_values(shown=show),
    )
    built.page().write(path)
    if as_json:
        emit_json({**built.document(), "page": str(path), **notes})
        return
    facts = built.document()
    typer.echo(
        f"{category}, protocol {protocol}, IoU {facts['iou']:g}: AP {facts['AP']:.4f}; {facts['true']} of "
        f"{facts['objects']} objects found, {facts['false']} false detections, {facts['ignored']} that do not count"
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
    data: Annotated[Path, typer.Option("--data", help="Images with ground truth: a folder or an annotation file.")],
    predictions: Annotated[
        Path, typer.Option("--predictions", help="Predictions: COCO results, a JSON list of detections.")
    ],
    protocols: Annotated[
        str,
        typer.Option(
            "--protocols",
            help="Two of coco, voc07, voc12, each with settings if need be, e.g. coco,voc07 or coco,coco:max_dets=10.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML page to write; .html is added.", show_default="difference.html")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Format of the labels, where several are found.", show_default="recognised"),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Part of the data, e.g. val.", show_default="the only one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Why two protocols' numbers for the same predictions differ: one rule changed after the other."""
    from otus.data.open import open_dataset
    from otus.errors import UsageError
    from otus.evaluation.comparing import compare_with_labels, notes_on
    from otus.metrics.detection.rules import parse_rules
    from otus.reports.explain.difference import explain_difference

    path = output_file(out, "difference.html")
    names = protocols.split(",")
    if len(names) != 2:
        raise UsageError(f"--protocols: expected two with a comma between, e.g. coco,voc07, got {protocols!r}")
    a, b = names
    rules = parse_rules(a), parse_rules(b)
    dataset = open_dataset(data, format=format_, split=split)
    comparison = compare_with_labels(dataset, predictions)
    notes = tell_notes(notes_on(comparison))
    explained = explain_difference(dataset, comparison, (a, b), rules)
    explained.page().write(path)
    document = explained.document()
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
    data: Annotated[Path, typer.Option("--data", help="Images with ground truth: a folder or an annotation file.")],
    predictions: Annotated[
        Path, typer.Option("--predictions", help="Predictions: COCO results, a JSON list of detections.")
    ],
    iou: Annotated[float | None, typer.Option("--iou", help="IoU threshold of a match.", show_default="0.5")] = None,
    background_iou: Annotated[
        float | None,
        typer.Option(
            "--background-iou",
            help="IoU with every object up to which a detection is a background error.",
            show_default="0.1",
        ),
    ] = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            "--score-threshold",
            help="Minimum score in confusion matrix, worst images and label errors.",
            show_default="0.5",
        ),
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Compare masks, not boxes.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML page to write; .html is added.", show_default="errors.html")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Format of the labels, where several are found.", show_default="recognised"),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Part of the data, e.g. val.", show_default="the only one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """What goes wrong and what it costs: types of errors, confusion, calibration, worst images, doubtful labels."""
    from otus.cli._common import option_values
    from otus.data.open import open_dataset
    from otus.evaluation.comparing import compare_with_labels, notes_on
    from otus.reports.analysis import Analysis
    from otus.reports.explain.errors import ErrorsExplained

    path = output_file(out, "errors.html")
    dataset = open_dataset(data, format=format_, split=split)
    options = option_values(iou=iou, background_iou=background_iou, score_threshold=score_threshold)
    comparison = compare_with_labels(dataset, predictions)
    notes = tell_notes(notes_on(comparison))
    explained = ErrorsExplained(dataset, Analysis(comparison, masks=masks, **options))
    explained.page().write(path)
    facts = explained.document()
    if as_json:
        emit_json({**facts, "page": str(path), **notes})
        return
    typer.echo(
        f"protocol coco, {facts['kind']}: mAP {facts['AP']:.4f}; {facts['AP_at_iou']:.4f} at IoU {facts['iou']:g}"
    )
    for name, one in facts["errors"].items():
        typer.echo(f"{name:<15} {one['count']:>7}   costs {one['cost']:.4f}")
    typer.echo(f"{facts['label_errors']['count']} labels to look at; written to {path}")
