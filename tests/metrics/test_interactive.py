"""Number of clicks: by the words of its papers, and what must hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.errors import DataError, UsageError
from otus.metrics.interactive import InteractiveQuality, clicks_until, iou_by_clicks

curves_of_clicks = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=25), min_size=1, max_size=8)


def slow_clicks(curve: list[float], target: float, most: int) -> int:
    """Return, as the papers' code, the first click that reaches the IoU, else the maximum number of clicks."""
    return next((click for click, iou in enumerate(curve[:most], start=1) if iou >= target), most)


@given(curves_of_clicks, st.sampled_from([0.5, 0.85, 0.9]), st.integers(1, 22))
def test_a_slow_loop_says_the_same(curves, target, most):
    result = InteractiveQuality(max_clicks=most, targets=(target,)).update(curves).compute()
    percent = round(100 * target)
    assert result.figures[f"NoC@{percent}"] == pytest.approx(np.mean([slow_clicks(c, target, most) for c in curves]))
    assert result.figures[f"NoF@{percent}"] == pytest.approx(np.mean([max(c[:most]) < target for c in curves]))
    for click in range(1, most + 1):
        expected = np.mean([curve[min(click, len(curve)) - 1] for curve in curves])
        assert result.figures[f"IoU@{click}"] == pytest.approx(expected)


@given(curves_of_clicks, st.randoms(use_true_random=False), st.integers(0, 8))
def test_orders_and_shards_do_not_matter(curves, random, cut):
    whole = InteractiveQuality().update(curves).compute()
    shuffled = list(curves)
    random.shuffle(shuffled)
    merged = InteractiveQuality().update(shuffled[:cut]).merge(InteractiveQuality().update(shuffled[cut:])).compute()
    assert merged.figures == pytest.approx(whole.figures)
    assert 1 <= whole.figures["NoC@85"] <= whole.figures["NoC@90"] <= 20


def test_reaching_it_with_the_last_click_is_not_giving_up():
    figures = InteractiveQuality(max_clicks=3).update([[0.1, 0.2, 0.9], [0.1, 0.2, 0.3, 0.99]]).compute().figures
    assert (figures["NoC@90"], figures["NoF@90"]) == (3, 0.5)
    assert clicks_until(np.array([[0.1, 0.9]]), 0.9).tolist() == [2]
    assert clicks_until(np.array([[0.1, 0.2]]), 0.9).tolist() == [3]


def test_nothing_clicked_is_not_defined_and_bad_curves_are_named():
    assert np.isnan(list(InteractiveQuality().compute().figures.values())).all()
    for curve, words in (([], "no click"), ([0.5, np.nan], "nan after click 2"), ([1.5], "1.5 after click 1")):
        with pytest.raises(DataError, match=rf"curves\[1\].*{words}"):
            InteractiveQuality().update([[0.5], curve])
    with pytest.raises(UsageError, match="max_clicks"):
        iou_by_clicks([[0.5]], max_clicks=0)
    with pytest.raises(UsageError, match="targets"):
        InteractiveQuality(targets=(85,))
    with pytest.raises(UsageError, match="same targets"):
        InteractiveQuality().merge(InteractiveQuality(max_clicks=5))
