"""Export a trained network with its anomaly score to ONNX, and check what ONNX Runtime makes of it against torch.

    python -m tools.export_onnx --params WEIGHTS_FILE --network ldn121 --output model.onnx

Input: image (B, 3, H, W), float32 RGB in 0..1, any B, H and W. Outputs: class_logits (B, K, H, W); for weights with a
dataset head dataset_logits (B, 2, H, W) and hybrid_score (B, H, W), for closed-set ones max_logit_score (B, H, W).
Larger scores are more anomalous. Normalisation is inside.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from engine import run_script
from engine.files import require_writable
from engine.flags import Parser, whole_number
from errors import FileInTheWay, MissingFile, WrongInput
from labels import OUTLIER
from losses import hybrid_score, max_logit_score
from methods.evaluation import add_heads_flag
from models import NETWORKS, open_network

OPSET = 20
TOLERANCE = 1e-4  # of the largest magnitude
# Not whole patches: traced at 24x40 with patches of 4, Segmenter lost the cropping of its padding.
TRACED = (2, 3, 70, 150)
CHECKED = ((1, 3, 120, 150), (2, 3, 210, 130))  # at 120x150 a grid of LDN-121's pyramid is 2.5 wide before rounding
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--params", required=True, help="weights, closed-set or hybrid")
    parser.add_argument("--network", required=True, choices=list(NETWORKS), help="whose weights they are")
    parser.add_argument("--output", required=True, type=Path, help="the ONNX file to write")
    parser.add_argument("--num_classes", type=whole_number(1, OUTLIER), help="K (default: as many as the weights have)")
    add_heads_flag(parser)
    args = parser.parse_args(argv)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise WrongInput(f"the export needs {', '.join(missing)}: pip install -r requirements.txt")
    if not args.output.parent.is_dir():
        raise MissingFile(f"no folder {args.output.parent} to write {args.output.name} to; make it first")
    if args.output.is_dir():
        raise FileInTheWay(
            f"--output {args.output} is a folder; give the file to write, such as {args.output}/model.onnx"
        )
    require_writable(args.output.parent, "--output")

    model = Scored(open_network(args.params, args.network, args.num_classes, args.heads)).eval()
    unchecked = args.output.with_name(args.output.name + ".unchecked")
    try:
        write_onnx(model, unchecked)
        differences = check_onnx(model, unchecked)
        unchecked.replace(args.output)
    finally:
        unchecked.unlink(missing_ok=True)

    print(f"{args.output}: opset {OPSET}, {args.output.stat().st_size / 2**20:.1f} MiB")
    session = open_onnx(args.output)
    for kind, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for tensor in tensors:
            print(f"  {kind:6} {tensor.name} ({', '.join(map(str, tensor.shape))})")
    print("largest difference between ONNX Runtime and torch, as a share of the largest magnitude:")
    for shape, of_outputs in differences.items():
        print(f"  image {shape}: " + ", ".join(f"{name} {difference:.1e}" for name, difference in of_outputs.items()))
    return differences


class Scored(nn.Module):
    """A network that returns its anomaly score too, as the last output; `names` are the outputs'."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.names = ["class_logits", "dataset_logits", "hybrid_score"]
        if not network.hybrid:
            self.names = ["class_logits", "max_logit_score"]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if not self.network.hybrid:
            class_logits = self.network(image)
            return class_logits, max_logit_score(class_logits)
        class_logits, dataset_logits = self.network(image)
        return class_logits, dataset_logits, hybrid_score(class_logits, dataset_logits)


def write_onnx(model: nn.Module, path: Path) -> None:
    """Trace a module of images (B, 3, H, W), of any B, H and W, with `names` of its outputs, and write it as ONNX."""
    any_size = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad():
        # Not strict, len(images) would be taken for a constant. Left to torch.onnx, round would stop the tracer.
        traced = torch.export.export(model, (torch.rand(TRACED),), dynamic_shapes=(any_size,), strict=True)
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=model.names,
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            custom_translation_table=translations(),
            verbose=False,
        )
    # The exporter notes for each node where in which file on this machine it comes from: longer than the graph.
    program.model.graph.metadata_props.clear()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(path)


def translations() -> dict[Callable, Callable]:
    """ONNX for what torch's exporter lacks: round, and average pooling to a grid that depends on the image's size."""
    from onnxscript import opset20 as op
    from onnxscript.ir import DataType

    def to_integer(number, digits=None):  # noqa: ARG001 - a translation has its operator's arguments
        return op.Cast(op.Round(number), to=DataType.INT64)  # half to even, as Python's

    def average_in_grid(features, grid):
        """(B, D, h, w) -> (B, D, *grid), by a matrix for each axis"""
        shape = op.Shape(features)
        rows, columns = (bins(op.Gather(shape, axis + 2), op.Gather(grid, axis)) for axis in (0, 1))
        return op.MatMul(op.MatMul(rows, features), op.Transpose(columns, perm=(1, 0)))

    def bins(size, count):
        """(count, size): row i averages the places floor(i * size / count) .. ceil((i + 1) * size / count) - 1"""
        number, place = op.Unsqueeze(op.Range(0, count, 1), [1]), op.Range(0, size, 1)
        start, end = number * size / count, ((number + 1) * size + count - 1) / count  # integers, rounded down
        inside = op.And(op.GreaterOrEqual(place, start), op.Less(place, end))
        return op.Cast(inside, to=DataType.FLOAT) / op.Cast(end - start, to=DataType.FLOAT)

    return {round: to_integer, torch.ops.aten.adaptive_avg_pool2d.default: average_in_grid}


def open_onnx(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check_onnx(model: nn.Module, path: Path) -> dict:
    """{shape: {output: largest difference, of the largest magnitude}}; ValueError where one is over TOLERANCE."""
    session = open_onnx(path)
    differences, problems = {}, []
    for shape in CHECKED:
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = model(image)
        outputs = session.run(model.names, {"image": image.numpy()})
        differences[shape] = {}
        for name, output, ours in zip(model.names, outputs, expected, strict=True):
            if output.shape != ours.shape:
                problems.append(f"{name} of image {shape} is {output.shape} instead of {tuple(ours.shape)}")
                continue
            difference = ((torch.from_numpy(output) - ours).abs().max() / ours.abs().max()).item()
            differences[shape][name] = difference
            if not difference <= TOLERANCE:  # NaN is none
                problems.append(f"{name} of image {shape} differs by {difference:.1e} of the largest magnitude")
    if problems:
        raise WrongInput(
            f"ONNX Runtime and torch disagree by more than {TOLERANCE:g}, so no file was written: {'; '.join(problems)}"
        )
    return differences


if __name__ == "__main__":
    run_script(main)
