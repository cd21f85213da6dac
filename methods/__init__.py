"""How the papers train: what a step does with a batch, where negatives come from, what a validation says."""

from methods.flow_negatives import FLOW_SOURCE, trained_along
from methods.real_negatives import add_negative_flags, photographs_of_negatives
from methods.recipes import FlowRecipe, HybridRecipe, RealNegativesRecipe

__all__ = [
    "FLOW_SOURCE",
    "FlowRecipe",
    "HybridRecipe",
    "RealNegativesRecipe",
    "add_negative_flags",
    "photographs_of_negatives",
    "trained_along",
]
