"""Match predictions with the labels of a data set, for error analysis. Torch is not imported here."""

from pathlib import Path

from otus.data.dataset import Dataset
from otus.data.formats.coco_results import read_results
from otus.errors import Report, UsageError, stop_at_first
from otus.metrics.detection.average_precision import validate_objects
from otus.metrics.detection.ignore_regions import complete_regions
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.mismatches import mismatch_notes, score_threshold_notes
from otus.structures import Objects


def prediction_notes(*matchers: DetectionMatcher) -> list[str]:
    """Return warnings about predictions: a score threshold was applied, or they match no labels or those of others."""
    all_notes = [[*score_threshold_notes(matcher.predictions), *mismatch_notes(matcher)] for matcher in matchers]
    return list(dict.fromkeys(note for notes in all_notes for note in notes))


def compare_with_labels(
    dataset: Dataset, predictions: str | Path | Objects, *, report: Report = stop_at_first
) -> DetectionMatcher:
    """Return a matcher of predictions with the ground truth of a data set, without invalid records.

    Parameters
    ----------
    dataset
        Data set with objects.
    predictions
        COCO results, or objects with scores.
    report
        Called with the error of each invalid record, which is skipped (default: raise the first).

    Raises
    ------
    UsageError
        If the data set has no objects.
    DataError
        If ``report`` raises it.
    """
    if dataset.objects is None:
        raise UsageError(f"{dataset.source}: this data set has no objects to compare with")
    predicted = predictions if isinstance(predictions, Objects) else read_results(predictions, dataset, report=report)
    counts = {"label_count": len(dataset.categories), "image_count": len(dataset)}
    ground_truth = validate_objects(dataset.objects, "ground_truth", **counts, report=report)
    predicted = validate_objects(predicted, "predictions", **counts, report=report)
    return DetectionMatcher(
        complete_regions(ground_truth), predicted, dataset.categories, dataset.image_numbers(), dataset.images.sizes_hw
    )
