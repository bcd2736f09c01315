import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.errors import UsageError
from otus.inference.tiling import Tiles, merged, moved
from otus.structures import Instances, Masks


@given(height=st.integers(1, 400), width=st.integers(1, 400), size=st.integers(16, 200), overlap=st.floats(0, 0.9))
def test_tiles_cover_the_image_and_stay_in_it(height, width, size, overlap):
    covered = np.zeros((height, width), bool)
    for rows, columns in Tiles(size, overlap, whole_image=False).windows((height, width)):
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


LEFT, RIGHT = (slice(0, 100), slice(0, 60)), (slice(0, 100), slice(40, 100))


def test_of_a_cut_object_the_whole_detection_stays_whatever_the_scores():
    whole = found([[10, 0, 50, 20]], [0], [0.7])
    pieces = found([[40, 0, 50, 20], [40, 0, 50, 20], [60, 60, 70, 70]], [0, 1, 0], [0.95, 0.5, 0.4])
    once = merged([whole, pieces], [LEFT, RIGHT], threshold=0.5)
    assert once.scores.tolist() == [0.7, 0.5, 0.4]
    assert once.labels.tolist() == [0, 1, 0]


def test_the_whole_image_swallows_the_pieces_but_no_object_of_its_own():
    pieces = [found([[0, 30, 60, 90]], [0], [0.9]), found([[40, 30, 100, 90], [70, 40, 80, 50]], [0, 0], [0.9, 0.6])]
    whole = found([[0, 30, 100, 90]], [0], [0.8])
    once = merged([*pieces, whole], [LEFT, RIGHT, (slice(0, 100), slice(0, 100))], threshold=0.5)
    assert once.boxes_xyxy.tolist() == [[0, 30, 100, 90], [70, 40, 80, 50]]


def test_what_two_tiles_see_whole_is_found_once_and_detections_of_one_tile_are_left_alone():
    first = found([[45, 10, 55, 20], [45, 12, 55, 22], [5, 5, 15, 15]], [0, 0, 0], [0.6, 0.5, 0.3])
    second = found([[45, 10, 56, 20]], [0], [0.9])
    once = merged([first, second], [LEFT, RIGHT], threshold=0.7)
    assert once.scores.tolist() == [0.9, 0.5, 0.3]
    assert merged([first[:2], first[:0]], [LEFT, RIGHT], threshold=0.1).scores.tolist() == [0.6, 0.5]


def test_the_whole_image_is_a_window_unless_a_tile_covers_it():
    assert list(Tiles(60, 0.5).windows((60, 60))) == [(slice(0, 60), slice(0, 60))]
    *tiles, whole = Tiles(60, 0.5).windows((60, 90))
    assert tiles == list(Tiles(60, 0.5, whole_image=False).windows((60, 90)))
    assert whole == (slice(0, 60), slice(0, 90))


def test_strange_tiles_are_refused():
    with pytest.raises(UsageError, match="overlap"):
        Tiles(100, overlap=1.0)
    with pytest.raises(UsageError, match="merge_threshold"):
        Tiles(100, merge_threshold=0.0)
