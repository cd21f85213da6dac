"""Negatives of photographs: what the flags mean, and the patches that come of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from engine import argument_parser
from engine.recipe import read_recipe
from methods import RealNegativesRecipe, add_negative_flags, real_negatives
from methods.real_negatives import negative_images


@pytest.fixture
def photographs(tmp_path):
    """(images/, masks/): three pictures of 40x48 whose red says the id of a pixel: 1, 2 and, in few pixels, 3"""
    for number in range(3):
        ids = np.ones((40, 48), np.uint8)
        ids[:, 20:], ids[10:16, 10:16] = 2, 3
        pixels = np.stack([80 * ids, np.full_like(ids, 50), np.full_like(ids, 9)], 2)
        for kind, array in (("images", pixels), ("masks", ids)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / kind / f"{number}.png")
    return str(tmp_path / "images"), str(tmp_path / "masks")


def negatives_of(flags, rare_below=None, **changes):
    parser = argument_parser("A test.")
    add_negative_flags(parser)
    numbers = {"negative_resize": 40, "negative_size": 32, "negative_scale": [1, 1]} | changes
    recipe, _ = read_recipe("dlv3_cityscapes_finetune", RealNegativesRecipe, numbers)
    return real_negatives(parser.parse_args(["--exp_name", "test", *flags]), recipe, rare_below)


def shown(negatives, count=60):
    """The sets of ids that the masks of so many patches show"""
    torch.manual_seed(0)
    found = set()
    for _ in range(count):
        patch, mask, _ = negatives[0]
        found.add(frozenset((patch[0][mask].float() / 80).round().int().tolist()))
    return found


def test_the_recipes_numbers_size_the_patches(photographs):
    images, masks = photographs
    for size in (24, 32):
        negatives = negatives_of(["--neg_images", images, "--neg_masks", masks], negative_size=size)
        patch, mask, _ = negatives[0]
        assert patch.shape == (3, size, size) and mask.shape == (size, size)
    scaled = negatives_of(["--neg_images", images], negative_scale=[1.0, 2.5], negative_antialias=False)
    assert (scaled.resize, scaled.scale, scaled.antialias) == (40, (1.0, 2.5), False)


def test_ids_that_are_left_out_are_pasted_nowhere(photographs):
    images, masks = photographs
    everything = shown(negatives_of(["--neg_images", images, "--neg_masks", masks]))
    assert {1, 2} <= set().union(*everything)
    fewer = shown(negatives_of(["--neg_images", images, "--neg_masks", masks, "--neg_leave_out", "1", "3"]))
    assert set().union(*fewer) == {2}


def test_only_rare_ids_are_pasted_where_the_script_says_so(photographs):
    images, masks = photographs

    def rectangles(rare_below):
        negatives = negatives_of(["--neg_images", images, "--neg_masks", masks], rare_below)
        torch.manual_seed(0)
        drawn = [negatives[0][1] for _ in range(60)]
        return [mask.sum() == mask.any(0).sum() * mask.any(1).sum() for mask in drawn]

    assert all(rectangles(100))  # as id 3 is one, where id 1 has a hole
    assert not all(rectangles(None))


def test_ade20k_is_where_negatives_come_from_by_their_older_flag(ade20k, in_tmp):
    negatives = negatives_of(["--neg_dataroot", str(ade20k), "--cache", "copies"], negative_resize=48)
    assert len(negatives) == 4 and negatives[0][0].shape == (3, 32, 32)
    assert [*(in_tmp / "copies").iterdir()]


def test_pictures_over_the_limit_are_left_out(photographs, tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "images" / "large.png")
    assert len(negatives_of(["--neg_images", photographs[0]])) == 4
    assert len(negatives_of(["--neg_images", photographs[0], "--max_pixels", "5000"])) == 3


def test_one_source_of_negatives_is_asked_for(photographs, capsys):
    for flags, message in (([], "is required"), (["--neg_dataroot", "a", "--neg_images", "b"], "not allowed with")):
        with pytest.raises(SystemExit):
            negatives_of(flags)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        negatives_of(["--neg_images", "a", "--neg_leave_out", "256"])
    assert "--neg_leave_out: 256 must be in 0..255" in capsys.readouterr().err


def test_masks_without_images_are_refused():
    with pytest.raises(ValueError, match="--neg_masks m are the label maps of --neg_images, which is missing"):
        negative_images("ade", None, "m")


def test_ids_to_leave_out_of_images_without_label_maps_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--neg_leave_out 0 3: there are no label maps.*--neg_masks"):
        negative_images(None, str(tmp_path), None, [0, 3])
