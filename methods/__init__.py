"""How the papers train: what a step does with a batch, where negatives come from, what a validation says."""

from methods.dense_hybrid import closed_set_step, closed_set_validation, hybrid_step, hybrid_validation
from methods.flow_negatives import FLOW_SOURCE, FlowNegatives, add_flow_flags
from methods.flow_training import Warmup, likelihood_step, likelihood_validation, samples_picture
from methods.real_negatives import add_negative_flags, negative_images, real_negatives
from methods.recipes import FlowRecipe, HybridRecipe, LadderRecipe, RealNegativesRecipe, SegmenterRecipe

__all__ = [
    "FLOW_SOURCE",
    "FlowNegatives",
    "FlowRecipe",
    "HybridRecipe",
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
    "negative_images",
    "real_negatives",
    "samples_picture",
]
