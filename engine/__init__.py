"""What every run needs: recipes, flags, the training loop, checkpoints, logs, evaluation over a data set, pictures.

The engine knows no model, data set or loss: the scripts introduce them.
"""

from engine.device import start_process
from engine.evaluate import (
    anomaly_figures,
    closed_set_figures,
    evaluated_frames,
    has_outliers,
    predicted_classes,
)
from engine.evaluation import Evaluation, ReportedFrames, start_evaluation
from engine.flags import add_fixed_flags, argument_parser, script_parser
from engine.loader import batches, evaluation_loader, same_noise, to_device
from engine.pictures import evenly_spread, save_samples
from engine.precision import choose_precision
from engine.processes import main_process_first
from engine.recipe import Recipe, require_positive
from engine.results import write_results
from engine.run import Run
from engine.script import run_script
from engine.start import start_run
from engine.step import Step, require_two_images_per_forward
from engine.train import fit
from engine.windows import SlidingWindows

__all__ = [
    "Evaluation",
    "Recipe",
    "ReportedFrames",
    "Run",
    "SlidingWindows",
    "Step",
    "add_fixed_flags",
    "anomaly_figures",
    "argument_parser",
    "batches",
    "choose_precision",
    "closed_set_figures",
    "evaluated_frames",
    "evaluation_loader",
    "evenly_spread",
    "fit",
    "has_outliers",
    "main_process_first",
    "predicted_classes",
    "require_positive",
    "require_two_images_per_forward",
    "run_script",
    "same_noise",
    "save_samples",
    "script_parser",
    "start_evaluation",
    "start_process",
    "start_run",
    "to_device",
    "write_results",
]
