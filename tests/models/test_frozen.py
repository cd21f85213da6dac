"""A network that is used without being trained."""

import pytest
import torch
from torch import nn

from models import frozen, ladder_densenet121

# A network that is used without being trained


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    )


def applied(model, images):
    torch.manual_seed(1)  # of dropout
    return model(images)


@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_network_gives_the_same_outputs_and_input_gradients_and_keeps_its_state(training):
    model = small_network().train(training)
    model(torch.rand(4, 3, 8, 8))
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with frozen(model) as inside:
        assert inside is model and model.training == training
        output = applied(model, images)
    (ours,) = torch.autograd.grad(output.square().sum(), images)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())

    expected = applied(model, images)  # with batch normalisation by the batch, in train mode
    assert output.equal(expected)
    assert ours.equal(torch.autograd.grad(expected.square().sum(), images)[0])
    after = model.state_dict()
    assert all(value.equal(before[key]) for key, value in after.items()) != training


def test_a_frozen_networks_weights_get_no_gradient():
    model = small_network().train()
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    with frozen(model):
        output = applied(model, images)
    output.square().sum().backward()
    assert images.grad.any() and all(parameter.grad is None for parameter in model.parameters())


def test_gradients_that_were_there_before_stay_as_they_are():
    model = small_network().train()
    model(torch.rand(3, 3, 8, 8)).square().sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    with frozen(model):
        output = model(torch.rand(3, 3, 8, 8, requires_grad=True))
    output.square().sum().backward()
    assert all(parameter.grad.equal(grad) for parameter, grad in zip(model.parameters(), before, strict=True))


def test_everything_is_as_it_was_after_an_error():
    model = small_network().train()
    model[0].weight.requires_grad_(False)
    model[1].track_running_stats = False
    with pytest.raises(RuntimeError), frozen(model):
        model(torch.rand(1, 4, 8, 8))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name != "0.weight")
    assert [model[1].track_running_stats, model[5].track_running_stats] == [False, True]
    model(torch.rand(3, 3, 8, 8)).sum().backward()
    assert model[0].weight.grad is None and model[4].weight.grad is not None
    assert model[5].num_batches_tracked == 1


def test_the_statistics_of_ldn_are_left_alone():
    model = ladder_densenet121(4).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    with frozen(model):
        class_logits, _ = model(images)
    class_logits.square().sum().backward()
    assert images.grad.any()
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
