"""Anomaly scores of a pixel from its logits; larger is more anomalous (DenseHybrid, ECCV 2022; TPAMI 2024).

class_logits (B, K, H, W) and dataset_logits (B, 2, H, W) are raw; scores are (B, H, W) float32, in nats but for
max_logit_score. All is computed in log space: softmax().log() is -inf past 103 nats.
"""

from torch import Tensor

from errors import WrongInput


def generative_score(class_logits: Tensor) -> Tensor:
    """s_G(x) = -ln p^(x), the log-sum-exp of the class logits negated; also the energy score at temperature 1."""
    return -class_logits.float().logsumexp(1)


def discriminative_score(dataset_logits: Tensor) -> Tensor:
    """s_D(x) = ln P(d_out | x); channel 1 is outlier."""
    return dataset_logits.float().log_softmax(1)[:, 1]


def hybrid_score(class_logits: Tensor, dataset_logits: Tensor) -> Tensor:
    """s_H(x) = ln P(d_out | x) - ln p^(x), up to one constant per model."""
    return discriminative_score(dataset_logits) + generative_score(class_logits)


def max_softmax_score(class_logits: Tensor) -> Tensor:
    """-ln max_y P(y | x): ranks pixels as 1 - max P does (Hendrycks and Gimpel), without its ties near certainty."""
    return -class_logits.float().log_softmax(1).amax(1)


def max_logit_score(class_logits: Tensor) -> Tensor:
    """-max_y s_y (Hendrycks et al.), in logit units."""
    return -class_logits.float().amax(1)


def entropy_score(class_logits: Tensor) -> Tensor:
    """The entropy of P(y | x), 0..ln K."""
    log_posterior = class_logits.float().log_softmax(1)
    return -(log_posterior.exp() * log_posterior).sum(1)


CLASS_SCORES = {
    "generative": generative_score,
    "energy": generative_score,
    "max_softmax": max_softmax_score,
    "max_logit": max_logit_score,
    "entropy": entropy_score,
}
DATASET_SCORES = {
    "hybrid": hybrid_score,
    "discriminative": lambda _class_logits, dataset_logits: discriminative_score(dataset_logits),
}


def anomaly_score(name: str, class_logits: Tensor, dataset_logits: Tensor | None = None) -> Tensor:
    """A score by its name, a key of CLASS_SCORES or, where there are dataset logits, of DATASET_SCORES."""
    if name in CLASS_SCORES:
        return CLASS_SCORES[name](class_logits)
    if name not in DATASET_SCORES:
        raise WrongInput(f"no score {name!r}; choose one of {', '.join(CLASS_SCORES | DATASET_SCORES)}")
    if dataset_logits is None:
        raise WrongInput(
            f"the {name} score needs a dataset head, which this model does not have; "
            f"scores that need none: {', '.join(CLASS_SCORES)}"
        )
    return DATASET_SCORES[name](class_logits, dataset_logits)
