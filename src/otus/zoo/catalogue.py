"""What ``otus models`` says of each name."""

from typing import Any

from otus.zoo.checkpoint import load_checkpoint
from otus.zoo.models import MODELS
from otus.zoo.weights import packaged_file


def catalogue() -> list[dict[str, Any]]:
    """A record for each model: ``name``, ``task``, ``packaged``, ``trained``, ``weights`` (names, the best first),
    ``paper``, ``licence``, ``megabytes`` and ``figures`` of the best weights, and
    ``milliseconds`` an image with the packaged ones on :data:`~otus.zoo.models.TIMED_ON`; None is what nobody has stated."""
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
                "task": entry.task,
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
