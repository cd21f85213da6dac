"""What every run needs: recipes, flags, the training loop, checkpoints, logs, evaluation over a data set, pictures.

The engine knows no model, data set or loss: the scripts introduce them.
"""

from engine.evaluate import (
    anomaly_figures,
    closed_set_figures,
    evaluated_frames,
    picture_of,
    write_results,
)
from engine.pictures import evenly_spread, save_pictures
from engine.recipe import HybridRecipe, Recipe
from engine.run import Run, add_fixed_flags, argument_parser, choose_device, run_script, script_parser, start_run
from engine.train import fit
from engine.windows import SlidingWindows

__all__ = [
    "HybridRecipe",
    "Recipe",
    "Run",
    "SlidingWindows",
    "add_fixed_flags",
    "anomaly_figures",
    "argument_parser",
    "choose_device",
    "closed_set_figures",
    "evaluated_frames",
    "evenly_spread",
    "fit",
    "picture_of",
    "run_script",
    "save_pictures",
    "script_parser",
    "start_run",
    "write_results",
]
