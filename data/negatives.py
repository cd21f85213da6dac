"""Negatives: masked patches of other pictures, where they go, and their pasting into known scenes."""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from data.transforms import draw_integer, scaled_crop
from errors import WrongInput
from labels import IGNORE, OUTLIER

SMALLEST_SIDE, SIDE_STEP = 16, 8  # of a random rectangle; the release's


class MaskedPatches(Dataset):
    """Square patches of a labelled data set with a mask of what is to be pasted.

    Samples (patch uint8 (3, S, S), mask bool (S, S), name). The image is resized to a short side of `resize`
    pixels times a factor drawn from `scale`, and a square of `size` pixels cut out at random. The mask is, every
    other time, a random rectangle, else the union of two label ids of the patch drawn with replacement (the
    released code's rule).

    rare_below   for COCO20: mask_of_two_ids draws only from ids with fewer pixels than this in the patch (10,000 in the
                 release), so that things rather than walls and skies are pasted; None for streets: from all
    antialias    whether shrinking smooths the image first, as it does with photographs of known things; the release's
                 does not (its torchvision's default for tensors): its patches are sharper than what is around them
    leave_out    ids of which nothing is pasted, such as those of classes that the network knows (ours)
    """

    def __init__(
        self,
        dataset: Dataset,
        resize: int,
        size: int,
        scale: tuple[float, float] = (1.0, 1.0),
        rare_below: int | None = None,
        leave_out: Collection[int] = (),
        antialias: bool = True,
    ):
        if not SMALLEST_SIDE < size <= resize * scale[0]:
            raise WrongInput(
                f"negative_size {size} must be over {SMALLEST_SIDE} and at most {resize * scale[0]:g} pixels, "
                f"negative_resize {resize} times the least negative_scale {scale[0]}"
            )
        self.dataset, self.resize, self.size, self.scale, self.rare_below = dataset, resize, size, scale, rare_below
        self.antialias = antialias
        wrong = [number for number in leave_out if not 0 <= number <= 255]
        if wrong:
            raise WrongInput(f"--neg_leave_out {' '.join(map(str, wrong))}: label ids lie in 0..255")
        self.leave_out = torch.tensor([*(min(number, 254) for number in leave_out), IGNORE], dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def names(self) -> list[str]:
        return self.dataset.names

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        image, ids, name = self.dataset[index]
        factor = torch.empty(()).uniform_(*self.scale).item() * self.resize / min(image.shape[1:])
        patch, ids, _ = scaled_crop(image, ids, factor, self.size, self.dataset.mean_colour, self.antialias)
        allowed = ~torch.isin(ids, self.leave_out)
        if torch.rand(()) < 0.5:
            mask = random_rectangle(self.size)
        elif len(self.leave_out) > 1 and allowed.any():
            mask = torch.zeros_like(allowed).masked_scatter(allowed, mask_of_two_ids(ids[allowed], self.rare_below))
        else:
            mask = mask_of_two_ids(ids, self.rare_below)
        return patch, mask & allowed, name


def random_rectangle(size: int) -> Tensor:
    """A bool (size, size) mask, True in a rectangle whose sides are drawn from 16, 24, ... below size."""
    sides = range(SMALLEST_SIDE, size, SIDE_STEP)
    height, width = (sides[draw_integer(0, len(sides) - 1)] for _ in range(2))
    top, left = draw_corner((size, size), (height, width)).tolist()
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


def mask_of_two_ids(ids: Tensor, rare_below: int | None = None) -> Tensor:
    """True on the pixels of two ids of the map, drawn with replacement: now and then on those of one.

    rare_below   only ids with fewer pixels take part; where there is none, the rarest id is taken (the lowest of
                 several). None: all ids take part
    """
    present, counts = ids.unique(return_counts=True)
    if rare_below is not None:
        rare = counts < rare_below
        present = present[rare] if rare.any() else present[counts == counts.min()][:1]
    return torch.isin(ids, present[torch.randint(len(present), (2,))])


def draw_corner(image_size: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """(2,) int64: row and column of a patch's upper left corner, uniform over the places where it fits.

    Both sizes are (height, width); raises ValueError where the patch is larger than the image.
    """
    if any(patch > image for patch, image in zip(patch_size, image_size, strict=True)):
        sizes = [f"{width}x{height}" for height, width in (patch_size, image_size)]
        raise WrongInput(
            f"a negative patch of {sizes[0]} pixels is larger than the image of {sizes[1]}; lower negative_size"
        )
    return torch.tensor([draw_integer(0, image - patch) for patch, image in zip(patch_size, image_size, strict=True)])


def permitted_places(patch: int, *spans: tuple[int, int]) -> tuple[int, int]:
    """Least and greatest place of a patch's first pixel, along one axis on which it is `patch` pixels long.

    Of each span (first pixel, length), the patch lies inside or, where it is longer, covers all of it. The spans are
    the image, from 0, and its content, which lies inside it. The place is negative where the patch begins before
    the image.
    """
    least = max(min(first, first + length - patch) for first, length in spans)
    greatest = min(max(first, first + length - patch) for first, length in spans)
    return least, greatest


def place_negative(
    patch: Tensor, mask: Tensor, image_size: tuple[int, int], content: tuple[int, int, int, int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The patch (3, h, w), its mask (h, w) bool cleared outside the content, and the corner (2,) int64 to paste it at.

    The corner is uniform over the permitted places of each axis: inside the content, or where the content is
    shorter, those where the patch covers it. A patch that is larger than the image (height, width) is cut to it, at
    a random place. `content` is top, left, height, width; None is the whole image.
    """
    top, left, height, width = content or (0, 0, *image_size)
    row = draw_integer(*permitted_places(patch.shape[1], (0, image_size[0]), (top, height)))
    column = draw_integer(*permitted_places(patch.shape[2], (0, image_size[1]), (left, width)))
    inside = torch.zeros_like(mask)
    inside[max(0, top - row) : top + height - row, max(0, left - column) : left + width - column] = True
    seen = (..., slice(max(0, -row), image_size[0] - row), slice(max(0, -column), image_size[1] - column))
    return patch[seen], (mask & inside)[seen], torch.tensor([max(0, row), max(0, column)])


def paste(images: Tensor, labels: Tensor, patches: Tensor, masks: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """New images and labels with masked patches in them; pasted pixels are labelled OUTLIER.

    images   (B, 3, H, W); labels (B, H, W)
    patches  (B, 3, h, w), or (B, n, 3, h, w) for n patches in each image, of which a later one covers earlier ones
    masks    (B, h, w) or (B, n, h, w) bool, True where the patch shows
    corners  (B, 2) or (B, n, 2) row and column of the patch's upper left pixel, such that it lies inside the image

    Nothing is changed in place, and gradients flow to images and patches.
    """
    if patches.dim() == 4:
        patches, masks, corners = patches[:, None], masks[:, None], corners[:, None]
    height, width = images.shape[2:]
    for number in range(patches.shape[1]):
        placed, shown = [], []
        parts = zip(patches[:, number], masks[:, number], corners[:, number].tolist(), strict=True)
        for patch, mask, (row, column) in parts:
            border = (column, width - column - patch.shape[2], row, height - row - patch.shape[1])
            assert min(border) >= 0, f"patch at {row}, {column} leaves the image; draw its corner with draw_corner"
            placed.append(F.pad(patch, border))
            shown.append(F.pad(mask, border))
        shown = torch.stack(shown)
        images = torch.where(shown[:, None], torch.stack(placed).to(images.dtype), images)
        labels = labels.masked_fill(shown, OUTLIER)
    return images, labels


Negatives = MaskedPatches | Sequence[tuple[Tensor, Tensor, str]]  # samples (patch uint8, mask bool, name)


class WithNegatives(Dataset):
    """A data set whose samples carry negatives, not yet pasted, each drawn anew from torch's generator with its place.

    Samples (image, labels, patch (3, S, S), mask (S, S), corner (2,), name), or with a count n over 1 (image, labels,
    patches (n, 3, S, S), masks (n, S, S), corners (n, 2), name): what `paste` takes. Where the data set's samples
    carry the crop's content, (image, labels, content, name), negatives show only inside it; see place_negative. In an
    image smaller than S they are cut to its size.
    """

    def __init__(self, dataset: Dataset, negatives: Negatives, count: int = 1):
        if count < 1:
            raise WrongInput(f"{count} negatives for each image: there must be at least 1")
        self.dataset, self.negatives, self.count = dataset, negatives, count

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def names(self) -> list[str]:
        """Of the images, and of the pictures that the negatives are cut from."""
        return [*self.dataset.names, *self.negatives.names]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str]:
        image, labels, placed, name = self.image_and_negatives(index)
        parts = placed[0] if self.count == 1 else [torch.stack(tensors) for tensors in zip(*placed, strict=True)]
        return image, labels, *parts, name

    def image_and_negatives(self, index: int) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor, Tensor]], str]:
        """Image, labels, (patch, mask, corner) of each negative, name."""
        image, labels, *content, name = self.dataset[index]
        content = tuple(content[0].tolist()) if content else None
        placed, sources = [], []
        for _ in range(self.count):
            patch, mask, source = self.negatives[draw_integer(0, len(self.negatives) - 1)]
            placed.append(place_negative(patch, mask, tuple(image.shape[1:]), content))
            sources.append(source)
        return image, labels, placed, f"{name} with {', '.join(sources)}"


class WithFixedNegatives(Dataset):
    """Samples (image, labels, name) with `count` negatives pasted in, the same at every visit: for validation.

    A negative that is larger than the image, as among small photographs, is cut to it.
    """

    def __init__(self, dataset: Dataset, negatives: Negatives, count: int = 1, seed: int = 0):
        self.samples, self.seed = WithNegatives(dataset, negatives, count), seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed * len(self) + index)
            image, labels, placed, name = self.samples.image_and_negatives(index)
        image, labels = image[None], labels[None]
        for negative in placed:  # one by one: they may differ in size
            image, labels = paste(image, labels, *(part[None] for part in negative))
        return image[0], labels[0], name
