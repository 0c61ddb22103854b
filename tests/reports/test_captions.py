"""Captions show their text, fit into the frame, and leave the rest of it alone."""

import numpy as np
import pytest

from sparsevideo.reports.captions import Captions


@pytest.mark.parametrize("shape", [(64, 64), (240, 320), (720, 1280), (1920, 1080)])
def test_caption_covers_the_lower_left_corner_only(shape):
    frame = np.full((*shape, 3), 120, np.uint8)
    drawn = Captions(["juggling balls", "left"]).draw(frame, [("left", 0.873)])
    assert (frame == 120).all()  # the frame itself is not changed
    changed = (drawn != 120).any(axis=-1)
    rows, columns = changed.nonzero()
    assert rows.min() > shape[0] - max(24, 0.3 * shape[0]) and columns.max() < 0.9 * shape[1]
    assert (drawn > 200).all(axis=-1).sum() > 10  # white letters


def test_caption_of_a_long_name_is_made_smaller():
    frame = np.full((120, 160, 3), 120, np.uint8)
    name = "presenting weather forecast while balancing"
    drawn = Captions([name]).draw(frame, [(name, 1.0)])
    assert (drawn[:, -1] == 120).all() and (drawn > 180).all(axis=-1).any()


def test_caption_depends_on_label_and_score_and_has_a_line_for_each_class():
    frame, captions = np.full((240, 320, 3), 120, np.uint8), Captions(["a", "b", "走る", "يجري"])
    one = [captions.draw(frame, [(name, score)]) for name, score in (("a", 0.5), ("b", 0.5), ("a", 0.6))]
    assert not any(np.array_equal(one[0], other) for other in one[1:])
    two = captions.draw(frame, [("a", 0.5), ("b", 0.4)])
    heights = [(drawn != 120).any(axis=(1, 2)).sum() for drawn in (one[0], two)]
    assert heights[1] > 1.5 * heights[0]
    captions.draw(frame, [("走る", 0.5), ("يجري", 0.1)])  # the font of this machine may lack them: then numbers
    assert np.array_equal(captions.draw(frame, []), frame)
