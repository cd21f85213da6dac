"""What each experiment costs on paper: operations counted, GPUs by their makers' data sheets, nothing timed.

    python benchmarks/training_cost.py [--json FILE]

Counted are the operations of convolutions and matrix products, forward and backward, of one training crop of the
recipe's size (of a flow at the mean side of its patches), times epochs and images; validation is left out. The hours
take a share of a GPU's peak that such networks usually reach (SHARE), and of eight GPUs a share for their exchange.
"""

import math
import sys
from functools import partial
from pathlib import Path

import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks.sides import benchmark_parser, machine, write_table
from engine.recipe import RECIPES
from models import deeplabv3plus, denseflow_25_6, ladder_densenet121, segmenter

GPUS = {"H100 SXM": {"float32": 67e12, "bfloat16": 989e12}, "A100": {"float32": 19.5e12, "bfloat16": 312e12}}
SHARE = {"float32": 0.5, "bfloat16": 0.25}  # of the peak; assumed, not measured
EIGHT = 0.9  # of eight times the speed; assumed, not measured
IMAGES = {"ldn": 5125, "dlv3": 2975, "segmenter": 20581}  # published: StreetHazards, Cityscapes, COCO20
NETWORKS = {
    "ldn": partial(ladder_densenet121, 12),
    "dlv3": partial(deeplabv3plus, 19),
    "segmenter": partial(segmenter, 20),
}
FLOW_SIDE = 32  # at which the flow is counted; it is convolutional, so that operations grow with the area


def counted(function) -> int:
    """Operations of convolutions and matrix products inside; the plain attention does the fused one's products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


def network_step(network, crop: int, weights: bool = True) -> int:
    """Forward and backward of a crop; without weights, backward to the image alone."""
    with torch.device("meta"):
        model = network().train().requires_grad_(weights)
        image = torch.empty(2, 3, crop, crop, requires_grad=not weights)

    def step():
        output = model(image)
        sum(part.sum() for part in (output if isinstance(output, tuple) else (output,))).backward()

    return counted(step) // 2


def flow_step(sides: list[int], patches: int) -> int:
    """Sampling `patches` patches, then one with its gradient and the likelihood of what it covers."""
    torch.manual_seed(0)
    flow = denseflow_25_6()
    images = torch.randint(256, (2, 3, FLOW_SIDE, FLOW_SIDE)).float()
    flow(images)  # sets the ActNorm layers

    def draw():
        with torch.no_grad():
            flow.sample(2, FLOW_SIDE, FLOW_SIDE)

    def learn():
        (flow.sample(2, FLOW_SIDE, FLOW_SIDE).sum() + flow(images).sum()).backward()

    smallest, largest, step = sides
    choices = range(smallest, largest + 1, step)
    area = (sum(choices) / len(choices)) ** 2  # height and width are drawn one by one
    return round((patches * counted(draw) + counted(learn)) / 2 * area / FLOW_SIDE**2)


def experiments() -> dict[str, dict]:
    """Of each training of the release: steps and operations of a crop"""
    found = {}
    for name, block in yaml.safe_load(RECIPES.read_text()).items():
        kind = name.split("_")[0]
        if kind not in NETWORKS:
            continue
        numbers = {**(block["release"] or {}), **(block["ours"] or {})}
        closed_set = "finetune" not in name
        network = partial(NETWORKS[kind], hybrid=not closed_set)
        flops = network_step(network, numbers["crop_size"])
        if "patch_sides" in numbers:
            flops += network_step(network, numbers["crop_size"], weights=False)
            flops += flow_step(numbers["patch_sides"], numbers.get("patches_per_image", 1))
        found[name] = {
            "images": IMAGES[kind],
            "epochs": numbers["epochs"],
            "crop": numbers["crop_size"],
            "flops_per_crop": flops,
            "flops": flops * IMAGES[kind] * numbers["epochs"],
        }
    return found


def hours_text(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{math.ceil(60 * hours)} min"


def main():
    args = benchmark_parser(__doc__).parse_args()
    print(f"{machine()}; on paper: no GPU was used\n")
    columns = [(gpu, precision) for gpu in GPUS for precision in SHARE]
    head = ["experiment", "epochs x images", "TFLOPs a crop", "PFLOPs in all"]
    head += [f"{gpu} {precision}, one / eight" for gpu, precision in columns]
    rows = []
    for name, cost in experiments().items():
        hours = [cost["flops"] / (GPUS[gpu][precision] * SHARE[precision]) / 3600 for gpu, precision in columns]
        cost["hours"] = {f"{gpu} {precision}": hour for (gpu, precision), hour in zip(columns, hours, strict=True)}
        cells = [name, f"{cost['epochs']} x {cost['images']}", f"{cost['flops_per_crop'] / 1e12:.2f}"]
        cells += [f"{math.ceil(cost['flops'] / 1e15):,}"]
        rows.append(
            (cost | {"what": name}, cells + [f"{hours_text(hour)} / {hours_text(hour / 8 / EIGHT)}" for hour in hours])
        )
    for cells in (head, ["---"] * len(head), *(cells for _, cells in rows)):
        print("| " + " | ".join(cells) + " |")
    assumed = ", ".join(f"{share:.0%} of the peak in {precision}" for precision, share in SHARE.items())
    print(f"\nassumed: {assumed}; eight GPUs {8 * EIGHT:g} times as fast as one")
    write_table(args.json, "training_cost", assumed, [cost for cost, _ in rows])


if __name__ == "__main__":
    main()
