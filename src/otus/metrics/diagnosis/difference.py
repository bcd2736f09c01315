"""Explain why two protocols give different mAP for the same predictions, by changing one rule after the other.

There is one step for each rule in which two :class:`~otus.metrics.detection.rules.Rules` differ. Each step changes one
rule and computes mAP; the changes add up to the difference. The effect of a step depends on the rules changed before, so
the order is fixed: the one in which an evaluation applies its rules (detections, objects, matching, curve, mean).
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float

from otus.metrics.detection.matching import Outcome
from otus.metrics.detection.rules import Rules
from otus.metrics.diagnosis.assignment import DetectionMatcher

ORDER = tuple(field.name for field in fields(Rules))
"""Names of the rules in the order in which they are changed."""


@dataclass(frozen=True, eq=False)
class Step:
    """The figures after one more rule is changed; the first step changes none.

    Parameters
    ----------
    rule, before, after
        Name of the changed rule and its values; empty and None for the first step.
    rules
        All rules after the change.
    average_precision
        mAP with these rules.
    by_category
        (K,) AP of each category; NaN without positives.
    objects, detections, true
        Number of positives, of detections that are not ignored, and of true positives, at the lowest IoU threshold.
    """

    rule: str
    before: object
    after: object
    rules: Rules
    average_precision: float
    by_category: Float[np.ndarray, "k"]
    objects: int
    detections: int
    true: int


def difference_steps(matcher: DetectionMatcher, a: Rules, b: Rules) -> list[Step]:
    """Return the steps from rules ``a`` to rules ``b``, each changing one rule; the first is ``a`` itself."""
    steps = [_step(matcher, a)]
    rules = a
    for name in ORDER:
        before, after = getattr(rules, name), getattr(b, name)
        if before != after:
            rules = replace(rules, **{name: after})
            steps.append(_step(matcher, rules, name, before, after))
    return steps


def _step(matcher: DetectionMatcher, rules: Rules, rule: str = "", before: object = None, after: object = None) -> Step:
    matches = matcher.match(rules)
    figures = matches.average_precision()
    lowest = int(np.argmin(rules.iou_thresholds))
    outcomes = matches.outcomes[:, lowest]
    return Step(
        rule,
        before,
        after,
        rules,
        matches.mean_average_precision(),
        figures.mean(axis=1),
        objects=int(matches.positives.sum()),
        detections=int((outcomes != Outcome.IGNORED).sum()),
        true=int((outcomes == Outcome.TRUE_POSITIVE).sum()),
    )
