"""Cityscapes on made files in its layout."""

from data import IGNORE, Cityscapes
from tests.support.layouts import cityscapes

SIZE = HEIGHT, WIDTH = 40, 64


def test_cityscapes_label_ids_become_the_nineteen_train_ids(tmp_path):
    image, labels, name = Cityscapes(cityscapes(tmp_path, 1, SIZE), "train")[0]
    # Transcribed from the data set's table of labels: id -> train id.
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
                 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
    expected = [train_ids.get(pixel % 34, IGNORE) for pixel in range(HEIGHT * WIDTH)]
    assert labels.flatten().tolist() == expected
    assert name == "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png"
    assert image.shape == (3, HEIGHT, WIDTH) and len(Cityscapes.class_colours) == 19
