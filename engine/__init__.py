"""What every run needs: recipes, flags, the training loop, checkpoints, logs, evaluation over a data set, pictures.

The engine knows no model, data set or loss: the scripts introduce them.
"""

from engine.evaluate import Frame, closed_set_figures, evaluated_frames, write_results
from engine.pictures import class_picture, heat_picture, save_grid
from engine.recipe import ClosedSetRecipe, HybridRecipe
from engine.run import Run, add_fixed_flags, argument_parser, choose_device, run_script, script_parser, start_run
from engine.train import fit

__all__ = [
    "ClosedSetRecipe",
    "Frame",
    "HybridRecipe",
    "Run",
    "add_fixed_flags",
    "argument_parser",
    "choose_device",
    "class_picture",
    "closed_set_figures",
    "evaluated_frames",
    "fit",
    "heat_picture",
    "run_script",
    "save_grid",
    "script_parser",
    "start_run",
    "write_results",
]
