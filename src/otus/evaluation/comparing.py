"""Predictions for a data set laid beside its labels, for all that explains figures. Torch is not imported here."""

from pathlib import Path

from otus.data.dataset import Dataset
from otus.data.formats.coco_results import read_results
from otus.errors import Report, UsageError, stop_at_first
from otus.metrics.detection.average_precision import validate_objects
from otus.metrics.detection.ignore_regions import complete_regions
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.mismatches import mismatch_notes, score_threshold_notes
from otus.structures import Objects


def notes_on(*matchers: DetectionMatcher) -> list[str]:
    """What to know before figures are believed: predictions that were cut, or lie on nothing, or on other categories."""
    several = [[*score_threshold_notes(one.predictions), *mismatch_notes(one)] for one in matchers]
    return list(dict.fromkeys(note for notes in several for note in notes))


def compare_with_labels(
    dataset: Dataset, predictions: str | Path | Objects, *, report: Report = stop_at_first
) -> DetectionMatcher:
    """Labels and predictions of the same images, without records that cannot be.

    Parameters
    ----------
    dataset
        With objects.
    predictions
        COCO results, or objects with scores.
    report
        Gets each faulty record, which is left out; the default raises the first.

    Raises
    ------
    UsageError
        A data set without objects.
    DataError
        Where ``report`` raises it.
    """
    if dataset.objects is None:
        raise UsageError(f"{dataset.source}: this data set has no objects to compare with")
    found = predictions if isinstance(predictions, Objects) else read_results(predictions, dataset, report=report)
    counts = {"label_count": len(dataset.categories), "image_count": len(dataset)}
    truth = validate_objects(dataset.objects, "truth", **counts, report=report)
    found = validate_objects(found, "predictions", **counts, report=report)
    return DetectionMatcher(
        complete_regions(truth), found, dataset.categories, dataset.image_numbers(), dataset.images.sizes_hw
    )
