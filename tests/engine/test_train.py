import copy
import dataclasses
import functools
import json
import math
import warnings

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import engine
from engine.checkpoint import lay_out_as_weights
from engine.loader import training_loader
from engine.precision import FLOAT32
from engine.readings import LAG, Readings
from engine.train import estimate_statistics, make_schedule
from tests.support.tiny import (
    CPU,
    STEPS,
    TINY,
    Specks,
    assert_same_weights,
    loaded,
    log_of,
    read_weights,
    steps_of,
    tiny_step,
    train,
)

# Schedules and statistics


def learning_rates(schedule, epochs=7):
    """Each epoch's learning rates of two groups, at 0.01 and 0.04"""
    lr_min = 1e-3 if schedule == "cosine" else 0.0
    recipe = dataclasses.replace(TINY, lr=0.04, lr_min=lr_min, schedule=schedule, epochs=epochs)
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.01, 0.04)]
    optimizer = torch.optim.SGD(groups)
    stepped = make_schedule(optimizer, recipe)
    rates = []
    for _ in range(epochs + 1):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        stepped.step()
    return rates


def test_cosine_is_the_closed_formula_for_every_group():
    for epoch, rates in enumerate(learning_rates("cosine")):
        expected = [1e-3 + (lr - 1e-3) * (1 + math.cos(math.pi * epoch / 7)) / 2 for lr in (0.01, 0.04)]
        assert rates == pytest.approx(expected, rel=1e-9)


def test_poly_falls_to_nothing_with_the_power_of_nine_tenths():
    for epoch, rates in enumerate(learning_rates("poly")):
        assert rates == pytest.approx([lr * (1 - epoch / 7) ** 0.9 for lr in (0.01, 0.04)], rel=1e-9, abs=1e-12)


def test_constant_stays():
    assert learning_rates("constant") == [[0.01, 0.04]] * 8


def test_estimated_statistics_are_the_mean_over_the_first_batches():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.01), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        model[0].running_mean.fill_(77)
        model[0].running_var.fill_(77)
        model[0].num_batches_tracked.fill_(1000)
    before = [parameter.clone() for parameter in model.parameters()]
    estimate_statistics(model, training_loader(Specks(), 3, 4, True, 0, CPU, 0, 1), 2, CPU, FLOAT32)

    shown = list(loaded(batch_size=4).values())
    means, variances = [], []
    for batch in (shown[:4], shown[4:]):
        pixels = np.stack([image.numpy() for image, _ in batch]).transpose(1, 0, 2, 3).reshape(3, -1) / 255
        means.append(pixels.mean(1))
        variances.append(pixels.var(1, ddof=1))
    np.testing.assert_allclose(model[0].running_mean, np.mean(means, 0), rtol=1e-5)
    np.testing.assert_allclose(model[0].running_var, np.mean(variances, 0), rtol=1e-5)
    assert model[0].momentum == 0.01
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_estimated_statistics_stop_after_the_asked_number_of_batches():
    model = nn.Sequential(nn.BatchNorm2d(3))
    estimate_statistics(model, training_loader(Specks(), 3, 4, True, 0, CPU, 0, 1), 1, CPU, FLOAT32)
    pixels = np.stack([image.numpy() for image, _ in list(loaded(batch_size=4).values())[:4]]) / 255
    np.testing.assert_allclose(model[0].running_mean, pixels.mean((0, 2, 3)), rtol=1e-5)


# The training loop


def test_every_step_logs_each_term_by_name_and_every_epoch_its_figures(tmp_path):
    returned = []

    def step(model, images, labels):
        terms = tiny_step(model, images, labels)
        returned.append({name: term.item() for name, term in terms.items()})
        return terms

    figures = train(tmp_path / "run", step=step)
    steps, epochs = steps_of(tmp_path / "run"), [line for line in log_of(tmp_path / "run") if "validation" in line]
    assert [line["step"] for line in steps] == list(range(1, 3 * STEPS + 1))
    assert [line["epoch"] for line in steps] == [1] * STEPS + [2] * STEPS + [3] * STEPS
    assert [{"class": line["class"], "size": line["size"]} for line in steps] == returned
    rates = [1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
    assert [line["lr"] for line in steps] == pytest.approx(np.repeat(rates, STEPS).tolist())
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert epochs[-1]["validation"] == figures
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_the_gradient_is_that_of_the_sum_of_the_terms(tmp_path):
    seen = []

    def step(model, images, labels):
        if seen:  # what the first step did to the last bias
            seen.append(model[4].bias.detach().clone())
            raise KeyboardInterrupt
        seen.append(model[4].bias.detach().clone())
        weight = torch.tensor([1.0, -1.0, 2.0, -2.0])
        return {"up": -(weight * model[4].bias).sum(), "down": 3 * (weight * model[4].bias).sum()}

    with pytest.raises(SystemExit):
        train(tmp_path / "run", step=step)
    moved = seen[1] - seen[0]  # Adam's first step is lr against the sign of the gradient, 2 * weight
    torch.testing.assert_close(moved, -1e-2 * torch.tensor([1.0, -1.0, 1.0, -1.0]), rtol=1e-4, atol=0)


def test_a_loss_that_is_not_finite_stops_with_terms_step_and_files(tmp_path):
    batches_seen = []

    def step(model, images, labels):
        batches_seen.append(images)
        terms = tiny_step(model, images, labels)
        return terms | {"size": terms["size"] * (math.nan if len(batches_seen) == 5 else 1)}

    with pytest.raises(FloatingPointError) as stop:
        train(tmp_path / "run", step=step)
    message = str(stop.value)
    assert "not finite in step 5" in message and "'size': nan" in message and "'class': " in message
    second_epoch = list(loaded(epoch=1, seed=5, batch_size=3))
    assert f"files of the batch: {', '.join(second_epoch[3:6])}." in message
    assert [line["step"] for line in steps_of(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert read_weights(tmp_path / "run" / "last.pt")["progress"]["epoch"] == 1


def test_fewer_images_than_a_batch_are_refused_and_leave_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"10 training images are fewer than batch_size 11; lower it"):
        train(tmp_path / "run", batch_size=11)
    assert not (tmp_path / "run").exists()


def test_best_is_the_best_epoch_and_final_the_last(tmp_path):
    figures, weights, modes = iter([0.2, 0.6, 0.4]), [], []

    def validate(model):
        modes.append(model.training)
        weights.append({key: value.clone() for key, value in model.state_dict().items()})
        return {"mIoU": next(figures), "other": 0.9}

    assert train(tmp_path / "run", validate=validate) == {"mIoU": 0.4, "other": 0.9}
    assert_same_weights(tmp_path / "run" / "best.pth", weights[1])
    assert_same_weights(tmp_path / "run" / "final.pth", weights[2])
    assert modes == [False] * 3


def test_a_resumed_run_remembers_which_epoch_was_best(tmp_path):
    weights, figures = [], iter([0.6, KeyboardInterrupt, 0.4, 0.5])

    def validate(model):
        figure = next(figures)
        if figure is KeyboardInterrupt:
            raise KeyboardInterrupt
        weights.append({key: value.clone() for key, value in model.state_dict().items()})
        return {"mIoU": figure}

    with pytest.raises(SystemExit):
        train(tmp_path / "run", validate=validate)
    train(tmp_path / "run", validate=validate, resume=True)
    assert_same_weights(tmp_path / "run" / "best.pth", weights[0])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_training_with_a_narrow_type_runs_the_model_under_autocast(precision, tmp_path):
    types = []

    def step(model, images, labels):
        types.append(model(images).dtype)
        return tiny_step(model, images, labels)

    train(tmp_path / "half", step=step, precision=precision, epochs=1)
    train(tmp_path / "full", step=step, precision="float32", epochs=1)
    assert types == [getattr(torch, precision)] * STEPS + [torch.float32] * STEPS


def test_the_loss_of_float16_is_scaled_for_the_gradients_alone_and_the_scale_is_kept(tmp_path):
    gradients = []

    def step(model, images, labels):
        terms = tiny_step(model, images, labels)
        terms["class"].register_hook(gradients.append)
        return terms

    train(tmp_path / "half", step=step, precision="float16", epochs=1)
    scaler = read_weights(tmp_path / "half" / "last.pt")["optimizer_scaler"]
    assert [gradient.item() for gradient in gradients] == [2.0**16, 2.0**15, 2.0**15]  # too large for the first step
    assert scaler["scale"] == 2.0**15
    train(tmp_path / "full", step=tiny_step, precision="float32", epochs=1)
    assert [line["optimizer/scale"] for line in steps_of(tmp_path / "half")] == [2.0**15] * STEPS
    for half, full in zip(steps_of(tmp_path / "half"), steps_of(tmp_path / "full"), strict=True):
        assert half["class"] == pytest.approx(full["class"], rel=0.02)
    assert "optimizer_scaler" not in read_weights(tmp_path / "full" / "last.pt")


def endless(model, images, labels):
    """A loss that is finite, and whose gradient is not at any scale"""
    weight = model[0].weight
    return {"class": (weight - weight.detach()).sum().abs().sqrt() + 1}


def test_float16_gradients_that_overflow_at_any_scale_end_the_run(tmp_path, capsys):
    with pytest.raises(FloatingPointError, match=r"not finite in float16, however small.*--precision bfloat16"):
        train(tmp_path / "run", step=endless, precision="float16", epochs=10)
    scales = [line["optimizer/scale"] for line in steps_of(tmp_path / "run")]
    assert scales == [2.0**power for power in range(15, -1, -1)]
    note = f"note: optimizer took none of the epoch's {STEPS} steps, for its float16 gradients overflowed"
    assert capsys.readouterr().out.count(note) == 5


def test_an_epoch_without_a_step_shows_no_warning_of_torchs_schedules(tmp_path):
    with warnings.catch_warnings(record=True) as shown, pytest.raises(FloatingPointError):
        warnings.simplefilter("always")
        train(tmp_path / "run", step=endless, precision="float16", epochs=10)
    assert [str(warning.message) for warning in shown] == []


def test_the_network_sees_a_batch_part_by_part_and_the_terms_are_those_of_all(tmp_path):
    images_of = []

    def step(model, images, labels):
        images_of.append(images)
        return {"grey": images.mean() + 0 * model(images).sum()}

    train(tmp_path / "parts", step=step, batch_size=6, accumulation=3, epochs=1)
    assert [len(images) for images in images_of] == [2, 2, 2]
    mean = torch.cat(images_of).mean().item()
    assert [line["grey"] for line in steps_of(tmp_path / "parts")] == [pytest.approx(mean, rel=1e-5)]


@pytest.mark.parametrize("sync_batchnorm", [False, True])
def test_batchnorm_is_synchronised_where_the_run_says_so(sync_batchnorm, tmp_path):
    norms = []

    def step(model, images, labels):
        norms.append(type(model[1]))
        return tiny_step(model, images, labels)

    train(tmp_path / "run", step=step, sync_batchnorm=sync_batchnorm, epochs=1)
    assert set(norms) == {nn.SyncBatchNorm if sync_batchnorm else nn.BatchNorm2d}


@pytest.mark.parametrize("name", ["schedule_of_mine", "flow_scheduler"])
def test_a_schedule_in_the_state_is_stepped_once_an_epoch_whatever_its_name(name, tmp_path):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(tmp_path / "run", epochs=3, more_state={name: schedule})
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_the_log_is_json_where_a_number_is_not_finite(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    def step(model, images, labels):
        return {"class": model(images).sum() * math.inf}

    train(tmp_path / "undefined", validate=lambda model: {"mIoU": math.nan}, epochs=1)
    with pytest.raises(FloatingPointError):
        train(tmp_path / "infinite", step=step)
    lines = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("undefined", "infinite")]
    undefined, infinite = ([json.loads(line, parse_constant=refuse) for line in each] for each in lines)
    assert undefined[-1]["validation"] == {"mIoU": None} and infinite[-1]["class"] is None


def test_moments_from_a_checkpoint_lie_as_their_weights_do():
    """A fused optimizer goes through both by address"""
    layers = [nn.Conv2d(3, 4, 3) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    layers[1].to(memory_format=torch.channels_last)
    optimizers = [torch.optim.Adam(layer.parameters(), 1e-2, fused=True) for layer in layers]
    images = torch.rand(2, 3, 8, 8)

    def steps(layer, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            layer(images).square().mean().backward()
            optimizer.step()

    steps(layers[0], optimizers[0])
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    lay_out_as_weights(optimizers[1])
    for pair in zip(layers, optimizers, strict=True):
        steps(*pair)
    torch.testing.assert_close(layers[1].weight, layers[0].weight)


def test_a_gpu_without_memory_ends_with_advice(tmp_path):
    def step(model, images, labels):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")

    with pytest.raises(
        MemoryError, match=r"not enough memory for 3 crops of 8 pixels.*allocate 20\.00 MiB.*--accumulation 3, or"
    ):
        train(tmp_path / "run", step=step)


@pytest.mark.slow
def test_a_compiled_network_is_compiled_once_and_trains_to_the_same_weights(tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):  # what the compiler is given, run as it is: the default one needs a C++ compiler
        graphs.append({node.target for node in graph.graph.nodes if node.op == "call_function"})
        return graph

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    train(tmp_path / "compiled", compile=True, epochs=2)
    train(tmp_path / "plain", epochs=2)
    assert len(graphs) == 1 and torch.conv2d in graphs[0]
    assert_same_weights(tmp_path / "compiled" / "final.pth", tmp_path / "plain" / "final.pth")


def test_compiling_and_checkpointing_together_are_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="--compile and --checkpointing true do not go together"):
        train(tmp_path / "run", compile=True, checkpointing=True)
    assert not (tmp_path / "run").exists()


def test_validation_waits_for_its_epoch_and_comes_after_the_last(tmp_path):
    train(tmp_path / "run", validate_every=2, epochs=5)
    epochs = [line for line in log_of(tmp_path / "run") if "seconds" in line]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4, 5]
    assert [line["epoch"] for line in epochs if "validation" in line] == [2, 4, 5]


class Lagging(Readings):
    """Numbers that come as late as from a GPU"""

    def __init__(self, device):
        super().__init__(device)
        self.lag = LAG


def test_numbers_that_come_late_are_logged_all_the_same(tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setattr(engine.log, "Readings", Lagging)
    train(tmp_path / "run")
    assert steps_of(tmp_path / "run") == steps_of(uninterrupted)
    assert_same_weights(tmp_path / "run" / "final.pth", uninterrupted / "final.pth")


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_a_loss_that_is_not_finite_is_reported_with_its_own_step_however_late(bad, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.log, "Readings", Lagging)
    steps = []

    def step(model, images, labels):
        steps.append(None)
        terms = tiny_step(model, images, labels)
        return terms | {"extra": terms["class"] * (math.nan if len(steps) == bad else 0)}

    with pytest.raises(
        FloatingPointError, match=rf"not finite in step {bad}: .*'extra': nan.*files of the batch"
    ) as error:
        train(tmp_path / "run", step=step)
    seen = list(loaded(seed=5, batch_size=3))[3 * bad - 3 : 3 * bad]
    assert ", ".join(seen) in str(error.value)
    assert [line["step"] for line in steps_of(tmp_path / "run")] == [*range(1, bad + 1)]
    assert not (tmp_path / "run" / "last.pt").exists()


def test_rare_validation_changes_no_weight(tmp_path):
    train(tmp_path / "run", validate_every=3, statistics_batches=0)
    train(tmp_path / "often", statistics_batches=0)
    assert_same_weights(tmp_path / "run" / "final.pth", tmp_path / "often" / "final.pth")


def test_the_log_tells_what_an_epoch_cost(tmp_path, monkeypatch):
    times = iter([100.0, 104.0, 105.0])  # nine images in four seconds, validation in one
    monkeypatch.setattr(engine.log.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(engine.log, "peak_memory", lambda device: 3 * 2**20)
    train(tmp_path / "run", epochs=1)
    [line] = [line for line in log_of(tmp_path / "run") if "validation" in line]
    costs = {"seconds": 5.0, "validation_seconds": 1.0, "images_per_second": 9 / 4, "peak_memory_mib": 3.0}
    assert costs.items() <= line.items()


@pytest.mark.parametrize(("first", "then"), [("float32", "float16"), ("float16", "float32"), ("float32", "bfloat16")])
def test_a_run_may_go_on_in_another_precision(first, then, tmp_path):
    figures = iter([0.5, KeyboardInterrupt])

    def validate(model):
        figure = next(figures)
        if figure is KeyboardInterrupt:
            raise KeyboardInterrupt
        return {"mIoU": figure}

    with pytest.raises(SystemExit):
        train(tmp_path / "run", precision=first, epochs=3, validate=validate)
    train(tmp_path / "run", precision=then, epochs=3, resume=True)
    assert [line["epoch"] for line in log_of(tmp_path / "run") if "validation" in line] == [1, 2, 3]


def test_a_checkpoint_holds_all_that_a_run_needs(uninterrupted):
    saved = read_weights(uninterrupted / "last.pt")  # weights_only=True: nothing in it runs code
    assert saved.keys() == {"model", "optimizer", "schedule", "progress", "recipe", "samples", "tensors"}
    assert_same_weights(saved["model"], uninterrupted / "final.pth")
    assert len(saved["optimizer"]["param_groups"]) == 2 and saved["optimizer"]["state"][0]["step"] == 3 * STEPS
    assert saved["schedule"]["last_epoch"] == 3
    assert saved["progress"]["epoch"] == 3 and saved["progress"]["step"] == 3 * STEPS
    best = max(line["validation"]["mIoU"] for line in log_of(uninterrupted) if "validation" in line)
    assert saved["progress"]["best"] == best
    assert saved["recipe"]["lr"] == 1e-2 and saved["recipe"]["seed"] == 5 and saved["recipe"]["script"] == "tiny"
    written = yaml.safe_load((uninterrupted / "recipe.yaml").read_text())
    assert written["recipe"]["release"] | {"script": "tiny", "seed": 5} == saved["recipe"]
    assert not list(uninterrupted.glob("*.part"))


def test_resuming_on_other_data_or_with_another_recipe_is_refused(tmp_path):
    train(tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match=r"trained on 10 images, there are 9 now"):
        train(tmp_path / "run", resume=True, epochs=1, dataset=Specks(9))
    with pytest.raises(ValueError, match=r"epochs was 1 and is 2"):
        train(tmp_path / "run", resume=True, epochs=2)


def test_a_run_of_an_older_version_whose_recipe_had_more_keys_goes_on(tmp_path, uninterrupted):
    """accumulation and its like were numbers of the recipe, and the flow's file was, too"""
    folder = tmp_path / "run"

    def step(model, images, labels):
        if len(steps_of(folder)) == STEPS:
            raise KeyboardInterrupt
        return tiny_step(model, images, labels)

    with pytest.raises(SystemExit):
        train(folder, step=step)
    older = {"accumulation": 3, "checkpointing": True, "flow_checkpointing": True, "sync_batchnorm": False}
    saved, written = read_weights(folder / "last.pt"), yaml.safe_load((folder / "recipe.yaml").read_text())
    saved["recipe"] |= {"sync_batchnorm": False, "flow_state": "0" * 64}
    torch.save(saved, folder / "last.pt")
    written["recipe"]["release"] |= older
    (folder / "recipe.yaml").write_text(yaml.safe_dump(written))
    train(folder, resume=True)
    assert_same_weights(folder / "final.pth", uninterrupted / "final.pth")
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["recipe"] == written["recipe"]


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    figures = train(tmp_path / "run")
    weights, log = read_weights(tmp_path / "run" / "final.pth"), log_of(tmp_path / "run")
    assert train(tmp_path / "run", resume=True) == figures
    assert_same_weights(tmp_path / "run" / "final.pth", weights)
    assert log_of(tmp_path / "run") == log


def test_an_existing_folder_is_not_written_into_without_resume(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileExistsError):
        train(tmp_path / "run")
