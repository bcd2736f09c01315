"""Proposals on their image, and the plot of how much they cover."""

import numpy as np

from otus.metrics.proposals import ProposalProtocol, ProposalRecall
from otus.proposals.interface import Proposals
from otus.reports.proposals import draw_proposals, proposal_plot
from otus.structures import Categories, Objects


def test_the_first_are_drawn_and_the_rest_is_not():
    image = np.zeros((80, 100, 3), np.uint8)
    found = Proposals([[5, 5, 30, 30], [50, 40, 95, 75], [40, 2, 60, 20]], [0.9, 0.5, 0.1])
    drawn = draw_proposals(image, found, count=2)
    assert drawn[5, 5:30].max() > 200  # yellow
    assert drawn[40, 50:95, 2].max() > 100  # blue
    assert not drawn[0:4].any()
    strip = drawn[80:]  # the legend
    assert drawn.shape[1] == 100
    assert ((strip == (255, 214, 10)).all(axis=2).any(), (strip == (20, 60, 140)).all(axis=2).any()) == (True, True)
    assert not drawn[2:20, 45:60].any()
    assert not image.any()
    np.testing.assert_array_equal(draw_proposals(image, found.best(0)), image)


def test_a_line_for_each_method_with_the_metrics_figures():
    truth = Objects.build(image_index=[0, 0], labels=[0, 0], boxes_xyxy=[[0, 0, 10, 10], [20, 0, 30, 10]])
    found = Objects.build(image_index=[0, 0], labels=[0, 0], boxes_xyxy=[[0, 0, 10, 6], [20, 0, 30, 10]])
    protocol = ProposalProtocol(counts=(1, 2, 5), iou_thresholds=(0.5, 0.7))
    result = ProposalRecall(Categories(("owl",)), protocol).update(truth, found, image_ids=[0]).compute()
    figure = proposal_plot({"ours": result, "theirs": result})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Recall at IoU 0.5", "Recall at IoU 0.7", "MABO"]
    for axes, values in zip(figure.axes, (*result.recall, result.mabo), strict=True):
        assert len(axes.lines) == 2
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), protocol.counts)
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), values)
