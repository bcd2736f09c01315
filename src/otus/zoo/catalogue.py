"""List the models of the zoo and their properties, as ``otus models`` shows them."""

from typing import Any

from otus.errors import UsageError, did_you_mean
from otus.zoo.checkpoint import load_checkpoint
from otus.zoo.models import MODELS
from otus.zoo.weights import packaged_file


def list_models(task: str | None = None, *, trained: bool = False) -> list[str]:
    """Return the names that :func:`otus.load` and :func:`otus.train` take, those with packaged weights first.

    Parameters
    ----------
    task
        Return only models of this task: ``detection``, ``instance``, ``classification`` (default: all).
    trained
        Return only models with trained weights, packaged or published (default: False).

    Raises
    ------
    UsageError
        If there is no model of that task.

    Examples
    --------
    >>> list_models("instance", trained=True)[0]
    'mask_rcnn_efficientnet_lite0_fpn'
    """
    tasks = sorted({entry.task.name for entry in MODELS.values()})
    if task is not None and task not in tasks:
        raise UsageError(f"task: expected one of {', '.join(tasks)}, got {task!r}{did_you_mean(task, tasks)}")
    packaged = [name for name in MODELS if packaged_file(name) is not None]
    names = [*packaged, *(name for name in MODELS if name not in packaged)]
    return [
        name
        for name in names
        if task in (None, MODELS[name].task.name) and (not trained or name in packaged or MODELS[name].weights)
    ]


def catalogue() -> list[dict[str, Any]]:
    """Return a record for each model of the zoo.

    Its keys are ``name``, ``task``, ``packaged``, ``trained``, ``weights`` (names, the best first), ``paper``;
    ``licence``, ``megabytes`` and ``figures`` (metrics) of the best weights; and ``milliseconds`` per image with the
    packaged weights on :data:`~otus.zoo.models.TIMED_ON`. Unknown values are None or empty.
    """
    rows = []
    for name, entry in MODELS.items():
        packaged = packaged_file(name)
        best = next(iter(entry.weights.values()), None)
        figures = dict(best.figures) if best else {}
        licence = best.licence if best else ""
        megabytes = best.megabytes if best else None
        if packaged is not None:
            header = load_checkpoint(packaged)[1]
            figures, licence = dict(header.training.get("figures", {})), header.licence or ""
            megabytes = round(packaged.stat().st_size / 1e6)
        weights = [*(["packaged"] if packaged else []), *entry.weights]
        rows.append(
            {
                "name": name,
                "task": entry.task.name,
                "packaged": packaged is not None,
                "trained": bool(weights),
                "weights": weights,
                "paper": entry.paper,
                "licence": licence,
                "megabytes": megabytes,
                "milliseconds": entry.milliseconds,
                "figures": figures,
            }
        )
    return rows
