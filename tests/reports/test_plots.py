"""Plots in both themes and formats; a page's own turn with the reader's screen."""

import base64
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from otus.errors import UsageError
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.reports.analysis import Analysis
from otus.reports.canvas import THEMES, Canvas, embed_plot, write_plot
from otus.reports.cost_plot import cost_plot
from otus.reports.training_plot import training_plot
from otus.structures import Categories, Objects

NAMES = {
    "precision-recall", "ap-by-iou", "ap-by-category", "confusion", "error-costs", "thresholds", "calibration"
}  # fmt: skip


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 80, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 30, (60, 2))], axis=1)
    image, labels = rng.integers(0, 9, 60), rng.integers(0, 12, 60)
    truth = Objects.build(image_index=image, labels=labels, boxes_xyxy=boxes)
    said = np.where(rng.random(60) < 0.2, rng.integers(0, 12, 60), labels)
    found = Objects.build(
        image_index=image, labels=said, boxes_xyxy=boxes + rng.normal(scale=2, size=(60, 4)), scores=rng.random(60)
    )
    names = tuple(f"a category with a very long name {i}" for i in range(12))
    return Analysis(DetectionMatcher(truth, found, Categories(names), np.arange(9)))


@pytest.mark.parametrize("settings", [{"iou": 1.5}, {"background_iou": -1}, {"score_threshold": float("nan")}])
def test_settings_out_of_range_are_errors(settings):
    nothing = Objects.build(image_index=[], labels=[], boxes_xyxy=[], scores=np.zeros(0))
    matcher = DetectionMatcher(nothing, nothing, Categories(("owl",)), np.arange(1))
    with pytest.raises(UsageError, match=f"{next(iter(settings))}: expected 0 to 1"):
        Analysis(matcher, **settings)


@pytest.mark.parametrize("theme", THEMES)
def test_all_plots_are_written(theme, analysis, tmp_path):
    canvas = Canvas(theme)
    plots = analysis.plots(canvas)
    assert set(plots) == NAMES
    for name, figure in plots.items():
        write_plot(figure, tmp_path / f"{name}.png", canvas)
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert (pixels[0, 0].mean() > 200) == (theme == "light")
        assert pixels.std() > 5
    write_plot(plots["error-costs"], tmp_path / "costs.svg", canvas)
    text = (tmp_path / "costs.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "classification" in text
    assert not list(tmp_path.glob("*.tmp*"))


def test_costs_stand_at_their_place_and_what_is_not_known_is_left_out():
    axes = cost_plot({"a": (0.01, 0.2), "b": (1.0, 0.4), "c": (1.0, float("nan"))}).axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[0.01, 0.2], [1.0, 0.4]]]
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    assert axes.get_xscale() == "log"
    assert axes.get_ylim() == pytest.approx((0, 0.46))
    assert not cost_plot({}).axes[0].lines


def test_names_of_models_that_cost_alike_do_not_cover_one_another():
    models = {f"a model of some length {i}": (0.02 + 0.001 * i, 0.1 + 0.01 * i) for i in range(4)}
    figure = cost_plot(models | {"far to the right, and long of name": (1.0, 0.4)})
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_a_plot_is_the_same_each_time(analysis, tmp_path):
    for name in ("a", "b"):
        write_plot(analysis.plots(Canvas())["thresholds"], tmp_path / f"{name}.svg", Canvas())
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_on_a_page_it_turns_with_the_screen(analysis):
    figure = embed_plot(analysis.plots(Canvas())["error-costs"], "costs")
    svg = base64.b64decode(figure.source.partition("base64,")[2]).decode()
    assert "prefers-color-scheme: dark" in svg
    ElementTree.fromstring(svg)


def test_nothing_is_drawn_of_nothing(tmp_path):
    nothing = Objects.build(image_index=[], labels=[], boxes_xyxy=[], scores=np.zeros(0))
    for truth in (Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[0, 0, 9, 9]]), Objects.empty()):
        plots = Analysis(DetectionMatcher(truth, nothing, Categories(("owl",)), np.arange(1))).plots(Canvas())
    for name, figure in plots.items():
        write_plot(figure, tmp_path / f"{name}.svg", Canvas())


def test_scores_that_are_no_probabilities_have_no_calibration(analysis):
    matcher = analysis.matcher
    logits = replace(matcher, predictions=replace(matcher.predictions, scores=matcher.scores * 9 - 3))
    plots = Analysis(logits).plots(Canvas())
    assert set(plots) == NAMES - {"calibration"}


def test_curves_of_a_run_stand_in_groups_and_each_has_its_own_colour(tmp_path):
    figures = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    validated = {f"{kind}/{name}": 0.5 for kind in ("bbox", "segm") for name in figures} | {"bbox/APs": None}
    losses = {"loss": 1.0} | {f"loss/{name}": 0.2 for name in ("objectness", "rpn_boxes", "classes", "boxes", "masks")}
    rows = [{"epoch": epoch, "step": 10 * epoch, "learning_rate": 1e-4, **losses} for epoch in (1, 2, 3)]
    rows[1] |= validated
    figure = training_plot(rows)
    axes = {one.get_title(loc="left"): one for one in figure.axes if one.axison}
    shown = {title: [line.get_label() for line in one.lines] for title, one in axes.items()}
    assert shown == {
        "loss": ["loss", "objectness", "rpn_boxes", "classes", "boxes", "masks"],
        "boxes": figures[:3], "boxes by size": ["APm", "APl"], "boxes recall": figures[6:],
        "masks": figures[:3], "masks by size": figures[3:6], "masks recall": figures[6:],
    }  # fmt: skip
    for one in axes.values():
        assert len({line.get_color() for line in one.lines}) == len(one.lines)
    assert axes["masks"].lines[0].get_xydata().tolist() == [[2, 0.5]]
    write_plot(figure, tmp_path / "curves.png", Canvas())
    alone = training_plot([{"epoch": 1, "loss": 0.4}])
    assert [one.get_title(loc="left") for one in alone.axes] == ["loss"]


def test_a_single_epoch_is_seen_on_an_axis_of_whole_epochs():
    rows = [{"epoch": 0, "step": 0, "bbox/AP": 0.2}, {"epoch": 1, "loss": 0.4, "bbox/AP": 0.3}]
    for history, epochs, size in ((rows[1:], [1], 7), (rows, [0, 1], 3)):
        figure = training_plot(history)
        assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "boxes"]
        assert figure.axes[1].lines[0].get_markersize() == size
        for axes in figure.axes:
            low, high = axes.get_xlim()
            assert [tick for tick in axes.get_xticks() if low <= tick <= high] == epochs
