"""Loading training samples beside the plain way, sample by sample in turns, in one run.

    python benchmarks/loading.py [--frames 4] [--samples 40] [--json FILE]

The frames, drawn into a temporary folder, are PNG files of 2048x1024 with label maps, in Cityscapes' layout and of
about its files' size. A sample is a crop of 768 pixels at a scale between 0.5 and 2, from the files to the tensors.
The plain way makes the whole image a float tensor, resizes it and the whole label map, crops and flips. Both sides
draw the same numbers, hence the same crops. Bare decoding is that of the two files and nothing else, by Pillow, and by
our decoders: libspng for the image, Pillow for the label map.

One core, but for the loader with two workers. A time is the mean over visits, for samples of different scale cost
differently, of the shortest of three with the same draws, which what else runs disturbs least. A ratio is the other's
time over ours: above 1, ours is faster.
"""

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks.sides import benchmark_parser, machine, write_table
from data import Cityscapes, train_transform
from data.cityscapes import LABEL_IDS
from data.files import plain_png
from data.transforms import draw_integer
from engine.loader import batches, training_loader
from labels import IGNORE

HEIGHT, WIDTH = 1024, 2048
CROP, SCALE = 768, (0.5, 2.0)  # as the recipe of dlv3_cityscapes_finetune has them
BATCH, WORKERS = 2, (0, 1, 2)
ROUNDS = 3
PACKAGES = ("torch", "torchvision", "pillow", "imagecodecs")


def field(rng, cell, height, width):
    """Smooth noise float32 (height, width) that changes over `cell` pixels, of unit scale"""
    coarse = rng.standard_normal((height // cell + 2, width // cell + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def made_image(rng, height, width):
    """Pixels uint8 (height, width, 3), whose PNG file is about as large as a street's"""
    shape = sum(scale * field(rng, cell, height, width) for cell, scale in ((256, 50), (64, 25), (16, 8), (4, 2)))
    colours = [110 + shape + 12 * field(rng, 128, height, width) + rng.normal(0, 0.6, shape.shape) for _ in range(3)]
    return np.stack(colours, axis=-1).clip(0, 255).round().astype(np.uint8)


def draw_frame(root, number):
    """Write an image and its label map; returns their sizes in bytes."""
    rng = np.random.default_rng(number)
    image = made_image(rng, HEIGHT, WIDTH)
    classes = np.argmax(
        [field(rng, 192, HEIGHT, WIDTH) + 0.1 * field(rng, 16, HEIGHT, WIDTH) for _ in LABEL_IDS], axis=0
    )
    sizes = []
    for folder, ending, pixels in (
        ("leftImg8bit", "leftImg8bit.png", image),
        ("gtFine", "gtFine_labelIds.png", np.array(LABEL_IDS, np.uint8)[classes]),
    ):
        path = root / folder / "train" / "drawn" / f"{number:03}_{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        sizes.append(path.stat().st_size)
    return sizes


class Plain(Dataset):
    """The samples of a data set, loaded the plain way: image float (3, H, W) in 0..1, labels int64 (H, W), name"""

    def __init__(self, dataset):
        self.pairs, self.table, self.mean_colour = dataset.pairs, dataset.table.numpy(), dataset.mean_colour

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image_path, label_path = self.pairs[index]
        image = torch.from_numpy(np.array(Image.open(image_path).convert("RGB")))
        image = image.permute(2, 0, 1).contiguous().float() / 255
        labels = torch.from_numpy(self.table[np.array(Image.open(label_path))]).long()
        return *plain_crop(image, labels, CROP, SCALE, self.mean_colour), image_path.name


def plain_crop(image, labels, crop_size, scale, mean_colour):
    """Resize all, pad what is too small with mean_colour (0..255) and IGNORE, crop, flip; draws as train_transform"""
    factor = torch.empty(()).uniform_(*scale).item()
    size = [round(side * factor) for side in labels.shape]
    image = F.resize(image, size, InterpolationMode.BILINEAR, antialias=True)
    labels = F.resize(labels[None], size, InterpolationMode.NEAREST_EXACT)[0]
    top, left = (draw_integer(min(0, side - crop_size), max(0, side - crop_size)) for side in size)
    if min(size) < crop_size:
        above, before = max(0, -top), max(0, -left)
        place = (..., slice(above, above + size[0]), slice(before, before + size[1]))
        padded_size = [max(side, crop_size) for side in size]
        padded = (torch.tensor(mean_colour) / 255)[:, None, None].repeat(1, *padded_size)
        padded_labels = torch.full(padded_size, IGNORE)
        padded[place], padded_labels[place] = image, labels
        image, labels, top, left = padded, padded_labels, max(0, top), max(0, left)
    seen = (..., slice(top, top + crop_size), slice(left, left + crop_size))
    image, labels = image[seen], labels[seen]
    return (image.flip(-1), labels.flip(-1)) if torch.rand(()) < 0.5 else (image, labels)


def bare(image_path, label_path):
    for path in (image_path, label_path):
        with Image.open(path) as image:
            image.load()


def bare_ours(image_path, label_path):
    plain_png(image_path)
    pillow_decode(label_path)


def pillow_decode(path):
    return np.asarray(Image.open(path))


def visited(side, pairs, place, visit):
    side(pairs[visit % len(pairs)][place])


def mean_seconds(sides, visits):
    """Of each side, called with every visit's number: the mean over visits of the shortest of ROUNDS, in turns."""
    shortest = {name: np.full(visits, np.inf) for name in sides}
    for visit in range(visits):
        for _ in range(ROUNDS):
            for name, side in sides.items():
                torch.manual_seed(visit)
                start = time.perf_counter()
                side(visit)
                shortest[name][visit] = min(shortest[name][visit], time.perf_counter() - start)
    return {name: float(times.mean()) for name, times in shortest.items()}


def loader_seconds(sides, workers, samples):
    """Seconds a sample through the loader: the shortest of ROUNDS epochs of `samples`, in turns, after a first one"""
    loaders = {}
    for name, side in sides.items():
        longer = ConcatDataset([side] * (samples // len(side)))
        loaders[name] = training_loader(
            longer, seed=0, batch_size=BATCH, drop_last=True, workers=workers, device=torch.device("cpu"),
            process=0, processes=1,
        )  # fmt: skip
    shortest = dict.fromkeys(sides, float("inf"))
    for epoch in range(1 + ROUNDS):
        for name, loader in loaders.items():
            loader.sampler.epoch = epoch
            start = time.perf_counter()
            seen = sum(len(names) for _, names in batches(loader))
            if epoch:
                shortest[name] = min(shortest[name], (time.perf_counter() - start) / seen)
    return shortest


def row(what, seconds, ours, other):
    """A line of the table; the seconds are those of one sample or file."""
    return {
        "what": what,
        "ours_seconds": seconds[ours],
        "other": other,
        "other_seconds": seconds[other],
        "ratio": seconds[other] / seconds[ours],
    }


def measured(root, cache, samples):
    """The rows of the table, and the mean difference of our crops from the plain ones, of 255"""
    transform = train_transform(CROP, SCALE, Cityscapes.mean_colour)
    ours, with_cache = (Cityscapes(root, "train", transform, cache=folder) for folder in (None, cache))
    plain, pairs = Plain(ours), ours.pairs
    difference = 0.0
    for index in range(len(pairs)):  # also the first visits, which fill the cache and warm the files
        crops = []
        for side in (ours, with_cache, plain):
            torch.manual_seed(index)
            crops.append(side[index])
        assert all(torch.equal(a, b) for a, b in zip(crops[0][:2], crops[1][:2], strict=True)), "the cache differs"
        difference += (crops[0][0] - 255 * crops[2][0]).abs().mean().item() / len(pairs)

    seconds = mean_seconds(
        {
            "bare decoding by Pillow": lambda visit: bare(*pairs[visit % len(pairs)]),
            "bare decoding as ours": lambda visit: bare_ours(*pairs[visit % len(pairs)]),
            "plain": lambda visit: plain[visit % len(pairs)],
            "ours": lambda visit: ours[visit % len(pairs)],
            "cache": lambda visit: with_cache[visit % len(pairs)],
        },
        samples,
    )
    rows = [
        row("a sample", seconds, "ours", "plain"),
        row("a sample", seconds, "ours", "bare decoding by Pillow"),
        row("a sample", seconds, "ours", "bare decoding as ours"),
        row("a sample, decoded before", seconds, "cache", "plain"),
    ]
    for workers in WORKERS:
        seconds = loader_seconds({"plain": plain, "ours": ours, "cache": with_cache}, workers, samples)
        what = f"loader, {workers} worker{'s' * (workers != 1)}"
        rows.append(row(what, seconds, "ours", "plain"))
        rows.append(row(f"{what}, decoded before", seconds, "cache", "plain"))
    decoders = {"ours": plain_png, "Pillow": pillow_decode}
    seconds = mean_seconds({name: partial(visited, side, pairs, 0) for name, side in decoders.items()}, samples)
    rows.append(row("decoding an image", seconds, "ours", "Pillow"))
    return rows, difference


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--samples", type=int, default=40, help="visits of each side, and samples of a loader's epoch")
    args = parser.parse_args()
    if not BATCH <= args.frames <= args.samples:
        parser.error(f"--frames {args.frames} --samples {args.samples}: at least {BATCH} frames, and as many samples")

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder, "frames"), Path(folder, "cache")
        sizes = np.mean([draw_frame(root, number) for number in range(args.frames)], axis=0)
        files = f"images of {sizes[0] / 1e6:.2f} MB and label maps of {sizes[1] / 1e3:.0f} kB"
        setting = (
            f"{args.frames} drawn frames of {WIDTH}x{HEIGHT}, {files}; crops of {CROP} at {SCALE[0]:g} to {SCALE[1]:g}"
        )
        setting = f"{machine(packages=PACKAGES)}; {setting}"
        print(setting)
        print(
            f"means of {args.samples} visits, each the shortest of {ROUNDS}, in turns; loaders in batches of {BATCH}\n"
        )
        rows, difference = measured(root, cache, args.samples)
        copies = sum(path.stat().st_size for path in cache.iterdir()) / args.frames

    print(f"  {'':<34}{'ours, ms':>10}{'other, ms':>12}{'ratio':>8}")
    for line in rows:
        times = f"{1e3 * line['ours_seconds']:>10.1f}{1e3 * line['other_seconds']:>12.1f}{line['ratio']:>8.2f}"
        print(f"  {line['what']:<34}{times}   {line['other']}")
    print(f"\n  mean |difference| of our crops from the plain ones: {difference:.2f} of 255")
    print(f"  the cache takes {copies / 1e6:.1f} MB a frame")
    write_table(args.json, "loading", setting, rows)


if __name__ == "__main__":
    main()
