"""How the papers train, and which scores they evaluate.

What a step does with a batch, where negatives come from, what a validation says, which score an evaluation takes.
"""

from methods.dense_hybrid import closed_set_step, closed_set_validation, hybrid_step, hybrid_validation
from methods.flow_negatives import FlowNegatives, add_flow_flags
from methods.flow_training import Warmup, likelihood_step, likelihood_validation, samples_picture
from methods.real_negatives import add_negative_flags, real_negatives
from methods.recipes import FlowRecipe, LadderRecipe, RealNegativesRecipe, SegmenterRecipe

__all__ = [
    "FlowNegatives",
    "FlowRecipe",
    "LadderRecipe",
    "RealNegativesRecipe",
    "SegmenterRecipe",
    "Warmup",
    "add_flow_flags",
    "add_negative_flags",
    "closed_set_step",
    "closed_set_validation",
    "hybrid_step",
    "hybrid_validation",
    "likelihood_step",
    "likelihood_validation",
    "real_negatives",
    "samples_picture",
]
