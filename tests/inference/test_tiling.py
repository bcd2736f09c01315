import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.errors import UsageError
from otus.inference.tiling import Tiles, merged, moved
from otus.structures import Instances, Masks


@given(height=st.integers(1, 400), width=st.integers(1, 400), size=st.integers(16, 200), overlap=st.floats(0, 0.9))
def test_tiles_cover_the_picture_and_stay_in_it(height, width, size, overlap):
    covered = np.zeros((height, width), bool)
    for rows, columns in Tiles(size, overlap).windows((height, width)):
        assert rows.stop - rows.start == min(size, height)
        assert columns.stop - columns.start == min(size, width)
        assert rows.stop <= height
        assert columns.stop <= width
        covered[rows, columns] = True
    assert covered.all()


def found(boxes, labels, scores, size_hw=(100, 100)):
    masks = Masks.from_probabilities(np.ones((len(boxes), 4, 4), np.float32), np.array(boxes, float), size_hw)
    keypoints = np.array([[[box[0], box[1], 2.0]] for box in boxes])
    return Instances(boxes, labels, size_hw, scores=scores, masks=masks, keypoints=keypoints)


def test_moving_moves_every_column():
    there = moved(found([[10, 20, 30, 40]], [0], [0.9]), top=100, left=200, size_hw=(300, 400))
    assert there.boxes_xyxy.tolist() == [[210, 120, 230, 140]]
    assert there.keypoints.tolist() == [[[210, 120, 2]]]
    assert there.masks.dense()[0, 130, 220]
    assert there.masks.size_hw == there.size_hw == (300, 400)


def test_an_object_cut_by_a_border_is_found_once():
    whole = found([[0, 0, 50, 20]], [0], [0.9])
    cut = found([[30, 0, 50, 20], [30, 0, 50, 20], [60, 60, 70, 70]], [0, 1, 0], [0.95, 0.5, 0.4])
    once = merged([whole, cut], threshold=0.5)
    assert once.scores.tolist() == [0.95, 0.5, 0.4]
    assert once.labels.tolist() == [0, 1, 0]


def test_strange_tiles_are_refused():
    with pytest.raises(UsageError, match="overlap"):
        Tiles(100, overlap=1.0)
