"""Losses and anomaly scores: raw logits in, named loss terms or score maps in nats out."""

from losses.dense_hybrid import closed_set_loss, dense_hybrid_loss, pixel_counts
from losses.flow import bits_per_dimension, jensen_shannon_to_uniform, synthetic_negatives_loss
from losses.score import (
    CLASS_SCORES,
    DATASET_SCORES,
    anomaly_score,
    discriminative_score,
    entropy_score,
    generative_score,
    hybrid_score,
    max_logit_score,
    max_softmax_score,
)

__all__ = [
    "CLASS_SCORES",
    "DATASET_SCORES",
    "anomaly_score",
    "bits_per_dimension",
    "closed_set_loss",
    "dense_hybrid_loss",
    "discriminative_score",
    "entropy_score",
    "generative_score",
    "hybrid_score",
    "jensen_shannon_to_uniform",
    "max_logit_score",
    "max_softmax_score",
    "pixel_counts",
    "synthetic_negatives_loss",
]
