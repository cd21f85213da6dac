"""The scores against slow loops and values by hand."""

import copy
import math

import pytest
import torch

from losses import (
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
from tests.support.samples import random_batch

# The scores

SLOW_SCORES = {  # of one pixel: masses exp(s_y), and P(d_out | x)
    "generative": lambda masses, outlier: -math.log(sum(masses)),
    "energy": lambda masses, outlier: -math.log(sum(masses)),
    "max_softmax": lambda masses, outlier: -math.log(max(masses) / sum(masses)),
    "max_logit": lambda masses, outlier: -math.log(max(masses)),
    "entropy": lambda masses, outlier: -sum(m / sum(masses) * math.log(m / sum(masses)) for m in masses),
    "hybrid": lambda masses, outlier: math.log(outlier) - math.log(sum(masses)),
    "discriminative": lambda masses, outlier: math.log(outlier),
}
SCORES = {
    "generative": generative_score,
    "max_softmax": max_softmax_score,
    "max_logit": max_logit_score,
    "entropy": entropy_score,
    "hybrid": hybrid_score,
}


def test_every_score_has_a_slow_twin():
    assert SLOW_SCORES.keys() == CLASS_SCORES.keys() | DATASET_SCORES.keys()


@pytest.mark.parametrize("name", SLOW_SCORES)
def test_a_score_is_that_of_a_slow_loop(name):
    class_logits, dataset_logits, _ = (tensor.detach() for tensor in random_batch(seed=5))
    scores = anomaly_score(name, class_logits, dataset_logits)
    assert scores.dtype == torch.float32
    assert scores.shape == (2, 6, 7)
    for image, row, column in torch.cartesian_prod(*(torch.arange(n) for n in scores.shape)).tolist():
        masses = [math.exp(s) for s in class_logits[image, :, row, column].tolist()]
        inlier, outlier = (math.exp(s) for s in dataset_logits[image, :, row, column].tolist())
        expected = SLOW_SCORES[name](masses, outlier / (inlier + outlier))
        assert scores[image, row, column].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_scores_of_one_pixel_by_hand():
    class_logits = torch.tensor([0, math.log(3)]).view(1, 2, 1, 1)  # P = 1/4, 3/4; p^ = 4
    dataset_logits = torch.tensor([math.log(4), 0]).view(1, 2, 1, 1)  # P(d_out) = 1/5
    assert generative_score(class_logits).item() == pytest.approx(-math.log(4))
    assert discriminative_score(dataset_logits).item() == pytest.approx(-math.log(5))
    assert hybrid_score(class_logits, dataset_logits).item() == pytest.approx(-math.log(20))
    assert max_softmax_score(class_logits).item() == pytest.approx(math.log(4 / 3))
    assert max_logit_score(class_logits).item() == pytest.approx(-math.log(3))
    assert entropy_score(class_logits).item() == pytest.approx(math.log(4) / 4 + 3 / 4 * math.log(4 / 3))


def test_the_hybrid_score_is_the_sum_of_the_other_two():
    class_logits, dataset_logits, _ = random_batch(seed=6)
    both = discriminative_score(dataset_logits) + generative_score(class_logits)
    torch.testing.assert_close(hybrid_score(class_logits, dataset_logits), both)


def test_energy_is_another_name_of_the_generative_score():
    class_logits = random_batch()[0]
    torch.testing.assert_close(anomaly_score("energy", class_logits), generative_score(class_logits), rtol=0, atol=0)


@pytest.mark.parametrize("nats", [200.0, 1e4])
def test_a_score_hundreds_of_nats_out_stays_exact(nats):
    sure = torch.tensor([nats, 0.0]).view(1, 2, 1, 1)
    assert sure.softmax(1).log()[0, 1].item() == -math.inf  # why all is computed in log space
    assert discriminative_score(sure).item() == -nats
    assert discriminative_score(sure.flip(1)).item() == 0
    assert hybrid_score(sure, sure).item() == -2 * nats
    assert hybrid_score(sure - 2 * nats, sure).item() == 0  # ln p^ is as low as ln P(d_out)
    assert max_softmax_score(sure).item() == 0
    assert entropy_score(sure).item() == 0


def test_max_softmax_ranks_pixels_as_one_minus_the_maximum_does():
    class_logits = random_batch(seed=7, height=20, width=20)[0].detach()
    one_minus = 1 - class_logits.double().softmax(1).amax(1).flatten()
    ours = max_softmax_score(class_logits).flatten()[one_minus.argsort()]
    assert (ours.diff() >= -1e-6).all()
    sure = torch.tensor([[40.0, 0.0], [60.0, 0.0]]).view(2, 2, 1, 1)  # both are 1 - 1 in float32
    assert max_softmax_score(-sure).isfinite().all()


def test_the_entropy_lies_between_0_and_ln_k():
    flat = entropy_score(torch.full((1, 5, 1, 1), 7.0)).item()
    assert flat == pytest.approx(math.log(5))
    assert entropy_score(torch.tensor([1e4, 0, 0, 0, 0]).view(1, 5, 1, 1)).item() == 0
    scores = entropy_score(random_batch(spread=30.0, height=40)[0])
    assert 0 <= scores.min() < 0.01
    assert scores.max() <= math.log(5) + 1e-5


@pytest.mark.parametrize("name", SLOW_SCORES)
def test_larger_is_more_anomalous(name):
    # A road that the network knows, and a thing that it does not.
    class_logits = torch.tensor([[9.0, 0.0, 1.0], [1.0, 0.9, 1.1]]).T[None, :, None]
    dataset_logits = torch.tensor([[4.0, -4.0], [-1.0, 1.0]]).T[None, :, None]
    known, unknown = anomaly_score(name, class_logits, dataset_logits)[0, 0].tolist()
    assert unknown > known


@pytest.mark.parametrize("name", SCORES)
def test_a_score_by_name_is_the_function_of_that_name(name):
    *logits, _ = random_batch()
    expected = SCORES[name](*logits) if name in DATASET_SCORES else SCORES[name](logits[0])
    torch.testing.assert_close(anomaly_score(name, *logits), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", DATASET_SCORES)
def test_a_model_without_dataset_head_is_told_which_scores_work(name):
    with pytest.raises(ValueError, match=f"{name} score needs a dataset head") as error:
        anomaly_score(name, random_batch()[0])
    assert all(other in str(error.value) for other in CLASS_SCORES)
    assert not any(other in str(error.value) for other in DATASET_SCORES if other != name)


def test_an_unknown_score_is_told_which_there_are():
    *logits, _ = random_batch()
    with pytest.raises(ValueError, match="'softmax'") as error:
        anomaly_score("softmax", *logits)
    assert all(name in str(error.value) for name in SLOW_SCORES)
    with pytest.raises(ValueError, match="'softmax'"):
        anomaly_score("softmax", logits[0])


def test_scores_leave_their_inputs_as_they_were():
    class_logits, dataset_logits, _ = (tensor.detach() for tensor in random_batch())
    before = copy.deepcopy((class_logits, dataset_logits))
    for name in SLOW_SCORES:
        anomaly_score(name, class_logits, dataset_logits)
    for tensor, original in zip((class_logits, dataset_logits), before, strict=True):
        assert tensor.equal(original)
