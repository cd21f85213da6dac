import errno
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from engine.loader import (
    EpochSampler,
    SeededSamples,
    batches,
    evaluation_loader,
    to_device,
    training_loader,
)
from engine.script import run_script
from errors import MissingFile, WrongInput, message_of
from tests.support.tiny import CPU, Specks, loaded, samples_of, steps_of, tiny_step, train

# Feeding samples


def assert_same_samples(one, other):
    assert list(one) == list(other)
    for name in one:
        assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True))


def test_a_sample_is_a_function_of_seed_epoch_and_index_alone():
    def crops(seed, epoch, indices=range(10)):
        samples = SeededSamples(Specks(), seed)
        return {index: samples[epoch, index][0].tolist() for index in indices}

    assert crops(3, 1) == crops(3, 1, reversed(range(10)))
    assert crops(3, 1) != crops(3, 2) and crops(3, 1) != crops(4, 1) and crops(3, 1) != crops(1, 3)


def test_samples_do_not_depend_on_the_number_of_workers():
    alone = [loaded(epoch=epoch) for epoch in (0, 1)]
    for workers in (1, 2):
        loader = training_loader(Specks(), 3, 2, True, workers, CPU, 0, 1)
        for epoch in (0, 1):  # of one loader, whose workers stay
            loader.sampler.epoch = epoch
            assert_same_samples(samples_of(loader), alone[epoch])


def test_a_crop_does_not_depend_on_who_came_before_it():
    epoch = loaded(epoch=2)
    for name, (image, _) in epoch.items():
        index = int(name.removeprefix("speck_").removesuffix(".png"))
        assert torch.equal(image, SeededSamples(Specks(), 3)[2, index][0])


def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own():
    sampler = EpochSampler(50, seed=3, count=50)
    orders = []
    for epoch in range(3):
        sampler.epoch = epoch
        orders.append([index for _, index in sampler])
        assert sorted(orders[-1]) == list(range(50))
        assert list(sampler) == [(epoch, index) for index in orders[-1]]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] != list(range(50))
    assert orders[0] != [index for _, index in EpochSampler(50, seed=4, count=50)]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_together_see_the_batches_that_one_alone_sees(processes, drop_last):
    def names(process, processes):
        loader = training_loader(Specks(), 3, 6, drop_last, 0, CPU, process, processes)
        loader.sampler.epoch = 1
        return [names for _, names in batches(loader)]

    whole = names(0, 1)
    assert [len(batch) for batch in whole] == ([6] if drop_last else [6, 4])
    for parts, batch in zip(zip(*(names(p, processes) for p in range(processes)), strict=True), whole, strict=True):
        together = [name for part in parts for name in part]
        assert sorted(together) == sorted(batch) and len(set(map(len, parts))) <= 2


@pytest.mark.parametrize("processes", [2, 3, 12])
def test_in_an_evaluation_each_frame_is_seen_by_one_process(processes):
    shares = [
        [name for _, names in batches(evaluation_loader(Specks(), 0, CPU, 1, process, processes)) for name in names]
        for process in range(processes)
    ]
    assert sorted(name for share in shares for name in share) == sorted(f"speck_{i}.png" for i in range(10))
    assert shares[0][:2] == ["speck_0.png", f"speck_{processes}.png"][: len(shares[0])]


@pytest.mark.parametrize(("drop_last", "expected"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_the_last_incomplete_batch_is_dropped_or_kept(drop_last, expected):
    sizes = [len(names) for _, names in batches(training_loader(Specks(), 3, 4, drop_last, 0, CPU, 0, 1))]
    assert sizes == expected


def test_a_run_drops_or_keeps_the_last_incomplete_batch_as_its_recipe_says(tmp_path):
    train(tmp_path / "dropped", epochs=1, drop_last=True)
    train(tmp_path / "kept", epochs=1, drop_last=False)
    assert (len(steps_of(tmp_path / "dropped")), len(steps_of(tmp_path / "kept"))) == (3, 4)


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_random_numbers_of_training_alone(workers):
    torch.manual_seed(9)
    before = torch.get_rng_state()
    loaded(workers=workers)
    list(batches(evaluation_loader(Specks(), workers, CPU)))
    assert torch.equal(torch.get_rng_state(), before)


class Broken(Specks):
    """One of its files is not there, and it says so as our data sets do"""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def __getitem__(self, index):
        if index == 7:
            raise self.error("speck_7.png is gone")
        return super().__getitem__(index)


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [MissingFile, WrongInput])
def test_a_file_error_in_a_worker_arrives_as_it_is(error, workers):
    with pytest.raises(error, match=r"^speck_7\.png is gone$"):
        loaded(Broken(error), workers=workers)


class Deadly(Specks):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.processes
def test_a_killed_worker_gives_a_clear_error():
    with pytest.raises(ChildProcessError, match=r"a loader process died .*lower --workers"):
        loaded(Deadly(), workers=1)


# As torch says it, of a loader process or of the main one
SHORT = [
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n"
    "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)\n",
    "unable to write to file </torch_1_2_0>: No space left on device (28)",
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit.",
]


@pytest.mark.parametrize("said", SHORT)
def test_shared_memory_that_does_not_suffice_is_one_line_with_the_way_out(said):
    def main():
        raise RuntimeError(said)

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    told = ended.value.code
    assert told.startswith("error: /dev/shm has no room for what loader processes hand over (") and "\n" not in told
    assert told.endswith("take --workers 0, or give a container more of it, such as with docker run --shm-size 8g")


@pytest.mark.processes
def test_semaphores_that_cannot_be_made_are_told_as_shared_memory(monkeypatch):
    def full(loader):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", full)
    with pytest.raises(MemoryError, match=r"^/dev/shm has no room .* \(No space left on device\): take --workers 0"):
        loaded(workers=1)


@pytest.mark.processes
@pytest.mark.slow
def test_a_container_with_little_shared_memory_is_told_so():
    code = """
import sys
sys.path[:0] = [".", "tests"]
from tests.support.tiny import Specks, loaded, torch
from engine import run_script

class Large(Specks):
    def __getitem__(self, index):
        return torch.zeros(3, 300, 400, dtype=torch.uint8), torch.zeros(300, 400, dtype=torch.uint8), str(index)

run_script(lambda: loaded(Large(), workers=1, batch_size=1))
"""
    python = shlex.join([sys.executable, "-c", code])
    mount = f"mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 99; exec {python}"
    try:
        ended = subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if ended.returncode == 99 or "unshare" in ended.stderr:
        pytest.skip("no file systems can be mounted here")
    assert ended.returncode == 1 and ended.stderr.startswith("error: /dev/shm has no room"), ended.stderr
    assert ended.stderr.count("\n") == 1


class DeadlyLater(Specks):
    """Its worker dies while the training is busy with an earlier batch"""

    def __init__(self, marker):
        super().__init__()
        self.marker = marker

    def __getitem__(self, index):
        if self.marker.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.processes
def test_a_worker_killed_during_a_step_ends_a_script_with_the_same_line(tmp_path):
    marker = tmp_path / "now"

    def long_step(model, images, labels):
        marker.touch()
        time.sleep(0.5)
        return tiny_step(model, images, labels)

    def main():
        train(tmp_path / "run", workers=1, step=long_step, dataset=DeadlyLater(marker), batch_size=1)

    with pytest.raises(SystemExit, match=r"^error: a loader process died .*lower --workers$"):
        run_script(main)


class Interrupted(Specks):
    """Ctrl-C reaches the loader process, and the main process is gone before it fetches a batch"""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGINT)
        sys.excepthook(BrokenPipeError, BrokenPipeError("nobody reads"), None)
        sys.excepthook(KeyError, KeyError("a mistake"), None)
        return super().__getitem__(index)


@pytest.mark.processes
def test_a_loader_process_keeps_quiet_when_ctrl_c_ends_the_main_process(capfd):
    assert_same_samples(loaded(Interrupted(), workers=1), loaded())
    printed = capfd.readouterr().err
    assert "nobody reads" not in printed and "KeyboardInterrupt" not in printed and "a mistake" in printed


def test_pixels_become_floats_and_labels_whole_numbers_on_the_device():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    labels = torch.tensor([[[0, 11, 255]]], dtype=torch.uint8)
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    moved = to_device([image, labels, mask], CPU)
    torch.testing.assert_close(moved[0].flatten(), torch.tensor([0, 0.2, 1]))
    assert moved[1].dtype == torch.int64 and moved[1].tolist() == [[[0, 11, 255]]]
    assert moved[2].dtype == torch.bool


class Mistaken(Specks):
    def __getitem__(self, index):
        return int("a slip in the code")


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_the_code_keeps_its_traceback_from_a_worker_too(workers):
    loader = training_loader(Mistaken(), 3, 2, True, workers, CPU, 0, 1)
    with pytest.raises(ValueError) as mistake:
        list(batches(loader))
    assert "a slip in the code" in str(mistake.value)
    if workers:
        assert "Traceback" in str(mistake.value)
    assert message_of(mistake.value) is None
