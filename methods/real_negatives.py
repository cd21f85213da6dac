"""Negatives cut from photographs of other things: ADE20K, or any folder of images (DenseHybrid, ECCV 2022)."""

import argparse
from collections.abc import Collection
from pathlib import Path

from torch.utils.data import Dataset

from data import ADE20K, ImageFolder, MaskedPatches
from engine.flags import whole_number
from errors import WrongInput
from methods.recipes import RealNegativesRecipe


def add_negative_flags(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Flags that say where negatives come from; returns the group of those of which one is needed."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--neg_dataroot", help="ADEChallengeData2016, where the negatives come from")
    group.add_argument("--neg_images", help="instead any folder of images of unknown things, at any depth")
    parser.add_argument(
        "--neg_masks",
        help="label maps of neg_images, NAME.png at the same places, of ids to cut out by; without them rectangles and "
        "whole patches are pasted",
    )
    parser.add_argument(
        "--neg_leave_out",
        nargs="+",
        type=whole_number(0, 255),
        default=[],
        metavar="ID",
        help="label ids of which nothing is pasted",
    )
    return group


def real_negatives(
    args: argparse.Namespace, recipe: RealNegativesRecipe, rare_below: int | None = None
) -> MaskedPatches:
    """Patches of the images that the flags of add_negative_flags, --cache and --max_pixels name.

    rare_below  as in MaskedPatches: of label ids only those with fewer pixels than this are pasted; None: of all
    """
    images = negative_images(
        args.neg_dataroot, args.neg_images, args.neg_masks, args.neg_leave_out, args.cache, args.max_pixels
    )
    return MaskedPatches(
        images,
        resize=recipe.negative_resize,
        size=recipe.negative_size,
        scale=recipe.negative_scale,
        rare_below=rare_below,
        leave_out=args.neg_leave_out,
        antialias=recipe.negative_antialias,
    )


def negative_images(
    ade20k: str | None = None,
    images: str | None = None,
    masks: str | None = None,
    leave_out: Collection[int] = (),
    cache: str | Path | None = None,
    max_pixels: int | None = None,
) -> Dataset:
    """ADE20K, or any folder of images with or without label maps.

    cache       a folder for decoded copies of the files (see data/cache.py)
    max_pixels  of the largest picture: see LabelledImages for ADE20K, ImageFolder for any folder

    Raises ValueError for masks without images, and for ids to leave out where no label map has any.
    """
    if masks and not images:
        raise WrongInput(f"--neg_masks {masks} are the label maps of --neg_images, which is missing")
    if leave_out and images and not masks:
        raise WrongInput(
            f"--neg_leave_out {' '.join(map(str, leave_out))}: there are no label maps to find these ids in; give them "
            f"with --neg_masks, or leave nothing out of {images}"
        )
    if images:
        return ImageFolder(images, None, masks, cache, max_pixels)
    assert ade20k, "ADE20K's folder or one of images: add_negative_flags asks for either"
    return ADE20K(ade20k, cache=cache, max_pixels=max_pixels)
