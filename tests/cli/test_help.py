"""The help: defaults equal those of the functions, and each verb has two valid examples."""

import inspect
import shlex

import pytest
import typer
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.conversion import convert
from otus.experiments.ablation import IMAGE_SIZE, SEEDS
from otus.experiments.compare import TRAINING, VAL_FRACTION, compare
from otus.experiments.lineage import measure_lineage
from otus.experiments.segmentation_costs import measure_segmentation_costs
from otus.inference.predictor import SCORE_THRESHOLD, Predictor
from otus.inference.tiling import Tiles
from otus.metrics.diagnosis.bootstrap import CONFIDENCE, RESAMPLES, SEED
from otus.proposals.selective_search import SelectiveSearch
from otus.reports.analysis import Analysis
from otus.reports.explain.average_precision import explain_average_precision
from otus.training.settings import TrainSettings
from otus.zoo.weights import packaged_names


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def default_of(function, name):
    return inspect.signature(function).parameters[name].default


SETTINGS = TrainSettings()
MODEL = packaged_names()[0]
REAL = {
    ("predict", "--model"): MODEL,
    ("predict", "--score-threshold"): SCORE_THRESHOLD,
    ("predict", "--tile-overlap"): default_of(Tiles, "overlap"),
    ("predict", "--batch-size"): default_of(Predictor.stream, "batch_size"),
    ("predict", "--stride"): default_of(Predictor.stream, "stride"),
    ("predict", "--device"): default_of(otus.load, "device"),
    **{
        ("train", f"--{name.replace('_', '-')}"): getattr(SETTINGS, name)
        for name in (
            "epochs",
            "accumulate",
            "optimizer",
            "boxes",
            "patience",
            "seed",
            "workers",
            "device",
        )
    },
    ("train", "--batch-size"): SETTINGS.images_per_batch,
    ("train", "--devices"): SETTINGS.devices,
    ("train", "--num-nodes"): SETTINGS.num_nodes,
    ("evaluate", "--device"): default_of(otus.load, "device"),
    ("evaluate", "--precision"): default_of(otus.load, "precision"),
    ("compare", "--val"): VAL_FRACTION,
    ("compare", "--batch-size"): TRAINING.batch_size,
    ("compare", "--seeds"): SEEDS,
    ("compare", "--epochs"): TRAINING.epochs,
    ("compare", "--image-size"): IMAGE_SIZE,
    ("compare", "--device"): TRAINING.device,
    ("compare", "--precision"): default_of(compare, "precision"),
    ("compare", "--out"): default_of(compare, "out"),
    ("compare", "--resamples"): RESAMPLES,
    ("compare", "--confidence"): CONFIDENCE,
    ("compare", "--seed"): SEED,
    ("propose", "--mode"): SelectiveSearch().mode,
    ("propose", "--seed"): SelectiveSearch().seed,
    ("propose", "--workers"): SelectiveSearch().workers,
    ("propose", "--model"): MODEL,
    ("convert", "--images"): default_of(convert, "images"),
    ("explain detection", "--model"): MODEL,
    ("explain detection", "--score-threshold"): SCORE_THRESHOLD,
    ("explain ap", "--show"): default_of(explain_average_precision, "show"),
    ("explain ap", "--protocol"): default_of(explain_average_precision, "protocol"),
    ("explain errors", "--iou"): default_of(Analysis, "iou"),
    ("explain errors", "--background-iou"): default_of(Analysis, "background_iou"),
    ("explain errors", "--score-threshold"): default_of(Analysis, "score_threshold"),
    ("benchmark lineage", "--proposals"): default_of(measure_lineage, "proposals"),
    ("benchmark lineage", "--precision"): default_of(measure_lineage, "precision"),
    ("benchmark lineage", "--out"): default_of(measure_lineage, "folder"),
    ("benchmark semantic", "--image-size"): default_of(measure_segmentation_costs, "image_size"),
    ("benchmark semantic", "--repeats"): default_of(measure_segmentation_costs, "repeats"),
    ("benchmark semantic", "--precision"): default_of(measure_segmentation_costs, "precision"),
}
WITHOUT = {
    "--thresholds", "--data", "--predictions", "--model", "--models", "--config", "--resume", "--run", "--val"
}  # fmt: skip


@pytest.mark.parametrize(("verb", "option"), REAL, ids=lambda value: value)
def test_the_default_that_help_shows_is_the_real_one(verb, option):
    (shown,) = [one.show_default for one in COMMANDS[verb].params if option in one.opts]
    assert str(shown).replace(",", " ").split()[0] == str(REAL[verb, option])


@pytest.mark.parametrize("verb", COMMANDS)
def test_each_option_shows_its_default_and_each_verb_two_examples(verb, monkeypatch):
    for one in COMMANDS[verb].params:
        if one.required or one.default is not None or isinstance(one.show_default, str) or one.name == "help":
            continue
        assert set(one.opts) & WITHOUT, f"{one.opts[0]}: what happens without it?"
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app, [*verb.split(), "--help"]).stdout
    examples = [line.strip() for line in shown.splitlines() if line.startswith(" otus ")]
    assert len(examples) == 2
    for example in examples:
        words = shlex.split(example)[1 + len(verb.split()) :]
        COMMANDS[verb].make_context(verb, words)  # the parser takes it


def test_the_version_and_completion():
    from importlib.metadata import version

    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout.split()[1]) == (0, f"{otus.__version__},")
    assert version("torch") in done.stdout
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).stdout


def test_a_wrong_verb_or_option_suggests_the_nearest():
    assert "predict" in CliRunner().invoke(app, ["predikt"]).stderr
    assert "--weights" in CliRunner().invoke(app, ["predict", "a.jpg", "--weight", "x"]).stderr
