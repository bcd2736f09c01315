"""What ``otus models`` says of each name."""

from typing import Any

from otus.zoo.checkpoint import load_checkpoint
from otus.zoo.models import MODELS
from otus.zoo.weights import packaged_file


def catalogue() -> list[dict[str, Any]]:
    """A record for each model: ``name``, ``task``, ``packaged``, ``trained``, ``weights`` (names, the best first),
    ``paper``, ``licence`` and ``figures`` of the best weights."""
    rows = []
    for name, entry in MODELS.items():
        packaged = packaged_file(name)
        best = next(iter(entry.weights.values()), None)
        figures = dict(best.figures) if best else {}
        licence = best.licence if best else ""
        if packaged is not None:
            header = load_checkpoint(packaged)[1]
            figures, licence = dict(header.training.get("figures", {})), header.licence or ""
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
                "figures": figures,
            }
        )
    return rows
