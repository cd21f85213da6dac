import errno
import fcntl
import json
import multiprocessing
import os
import pickle
import platform
import random
import shutil
import signal
import subprocess
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from engine import checkpoint, files
from engine.lock import FolderLock
from errors import message_of
from tests.support.tiny import STEPS, assert_same_weights, log_of, read_weights, steps_of, tiny_step, train

# Killed and resumed. The processes are forked from a server that has torch loaded, and killed for real.


def train_apart(folder, workers, resume, deadly):
    """What a killed process runs: its own group, output beside the run's folder"""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a script started by hand, not as in a forked server
    output = os.open(f"{folder}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    step = tiny_step
    if deadly and deadly[0] == "step":
        step = die_in_step(deadly[1])
    elif deadly and deadly[0] == "slow":
        step = slow_step
    elif deadly:
        die_while_saving(folder, *deadly)
    train(folder, workers, resume, step)


def slow_step(model, images, labels):
    time.sleep(0.02)
    return tiny_step(model, images, labels)


def die_in_step(number):
    calls = []

    def step(model, images, labels):
        calls.append(None)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return tiny_step(model, images, labels)

    return step


def die_while_saving(folder, name, moment):
    """Die as soon as the file of this name is half written, wholly written, or put in place"""
    fsync, replace = os.fsync, os.replace

    def deadly_fsync(descriptor):
        part = folder / f"{name}.part"
        if moment == "half written" and part.exists() and os.path.samestat(os.fstat(descriptor), part.stat()):
            os.ftruncate(descriptor, part.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    def deadly_replace(source, target):
        if moment == "not in place" and Path(target) == folder / name:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if moment == "in place" and Path(target) == folder / name:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync, os.replace = deadly_fsync, deadly_replace


@pytest.fixture(scope="module")
def begin():
    """Starts train_apart and returns its process"""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.tensorboard", "sklearn.metrics", "pytest", "tests.support.tiny"])
    processes = []

    def begin(folder, workers=0, resume=True, deadly=None):
        process = context.Process(target=train_apart, args=(folder, workers, resume, deadly))
        process.start()
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.join()


def ended(process):
    process.join(60)
    return process.exitcode


def wait_for_lines(folder, count, process):
    """Until the log has so many lines, or the process has ended"""
    log = folder / "log.jsonl"
    while process.is_alive() and (not log.exists() or len(log.read_bytes().splitlines()) < count):
        time.sleep(0.002)


def assert_ended_as_if_never_stopped(folder, uninterrupted):
    assert_same_weights(folder / "final.pth", uninterrupted / "final.pth")
    assert_same_weights(folder / "best.pth", uninterrupted / "best.pth")
    assert steps_of(folder) == steps_of(uninterrupted)
    figures = [[line["validation"] for line in log_of(run) if "validation" in line] for run in (folder, uninterrupted)]
    assert figures[0] == figures[1]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path, begin, uninterrupted, workers):
    folder = tmp_path / "run"
    for kill in range(4):
        process = begin(folder, workers, resume=kill > 0, deadly=("slow",))
        wait_for_lines(folder, random.randint(1, 3 * STEPS), process)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        ended(process)
    assert ended(begin(folder, workers)) == 0, Path(f"{folder}.txt").read_text()
    assert_ended_as_if_never_stopped(folder, uninterrupted)


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_in_the_middle_of_an_epoch_resumes_with_any_number_of_workers(
    tmp_path, begin, uninterrupted, workers
):
    folder = tmp_path / "run"
    assert ended(begin(folder, workers, resume=False, deadly=("step", 2 * STEPS + 2))) == -signal.SIGKILL
    assert read_weights(folder / "last.pt")["progress"]["epoch"] == 2
    assert ended(begin(folder, 2 - workers)) == 0
    assert_ended_as_if_never_stopped(folder, uninterrupted)


@pytest.mark.processes
def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning(tmp_path, begin, uninterrupted):
    folder = tmp_path / "run"
    assert ended(begin(folder, resume=False, deadly=("step", 2))) == -signal.SIGKILL
    assert (folder / "recipe.yaml").exists() and not (folder / "last.pt").exists()
    assert ended(begin(folder)) == 0
    assert_ended_as_if_never_stopped(folder, uninterrupted)


def test_a_run_killed_right_after_making_its_folder_starts_from_the_beginning(tmp_path, uninterrupted):
    (tmp_path / "run").mkdir()
    train(tmp_path / "run", resume=True)
    assert_ended_as_if_never_stopped(tmp_path / "run", uninterrupted)
    assert (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_killed_while_it_writes_any_of_its_files_ends_with_the_same_weights(tmp_path, begin, uninterrupted):
    folder = tmp_path / "run"
    for name in ("recipe.yaml", "best.pth", "last.pt", "last.pt.1", "log.jsonl", "final.pth"):
        for moment in ("half written", "not in place", "in place"):
            if (name, moment) == ("last.pt.1", "half written"):
                continue  # it is a second name of a file that is whole
            process = begin(folder, resume=folder.exists(), deadly=(name, moment))
            assert ended(process) == -signal.SIGKILL, f"{name} {moment}: {Path(f'{folder}.txt').read_text()}"
            for written in (*folder.glob("*.pt"), *folder.glob("*.pth")):
                read_weights(written)
    assert ended(begin(folder)) == 0
    assert_ended_as_if_never_stopped(folder, uninterrupted)


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_says_how_to_go_on_and_leaves_a_run_that_does(tmp_path, begin, uninterrupted, workers):
    folder = tmp_path / "run"
    process = begin(folder, workers, resume=False, deadly=("slow",))
    wait_for_lines(folder, STEPS + 3, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader processes too
    assert ended(process) == 130
    printed = Path(f"{folder}.txt").read_text()
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if "stopped" in line]
    assert lines == ["stopped after 1 of 3 epochs; go on with: python tiny.py --exp_name tiny --resume"]
    assert ended(begin(folder, workers)) == 0
    assert_ended_as_if_never_stopped(folder, uninterrupted)


def test_ctrl_c_in_a_resumed_run_does_not_ask_for_resume_twice(tmp_path, capsys):
    def step(model, images, labels):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ending:
        train(tmp_path / "run", resume=True, step=step)
    assert ending.value.code == 130
    assert capsys.readouterr().out.strip().endswith("go on with: python tiny.py --exp_name tiny --resume")


def test_ctrl_c_waits_until_tensorboards_queue_is_left_alone(tmp_path, monkeypatch):
    written, add_scalar = [], SummaryWriter.add_scalar

    def interrupted(events, name, *values):
        os.kill(os.getpid(), signal.SIGINT)
        add_scalar(events, name, *values)
        written.append(name)

    monkeypatch.setattr(SummaryWriter, "add_scalar", interrupted)
    with pytest.raises(SystemExit) as ending:
        train(tmp_path / "run")
    assert ending.value.code == 130
    assert written == ["loss/class", "loss/size", "lr"]  # all of the first step, and nothing after it


def test_a_line_that_a_killed_run_was_writing_is_dropped_from_the_log(tmp_path, uninterrupted):
    def step(model, images, labels):
        if len(steps_of(tmp_path / "run")) == STEPS + 1:
            raise KeyboardInterrupt
        return tiny_step(model, images, labels)

    with pytest.raises(SystemExit):
        train(tmp_path / "run", step=step)
    with open(tmp_path / "run" / "log.jsonl", "a") as log:
        log.write('{"epoch": 2, "st')
    train(tmp_path / "run", resume=True)
    assert_ended_as_if_never_stopped(tmp_path / "run", uninterrupted)


# Saving


def test_a_full_disk_keeps_the_older_checkpoint_and_names_the_file(tmp_path, monkeypatch, uninterrupted):
    folder, fsync = tmp_path / "run", os.fsync

    def full_disk(descriptor):
        part = folder / "last.pt.part"
        if (folder / "last.pt").exists() and part.exists() and os.path.samestat(os.fstat(descriptor), part.stat()):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(
        OSError, match=r"could not write .*run/last\.pt \(No space left on device\); the older one"
    ) as stop:
        train(folder)
    assert stop.value.errno == errno.ENOSPC and "--resume" in str(stop.value)
    assert read_weights(folder / "last.pt")["progress"]["epoch"] == 1
    assert not list(folder.glob("*.part"))
    monkeypatch.undo()
    train(folder, resume=True)
    assert_ended_as_if_never_stopped(folder, uninterrupted)


def test_a_disk_that_fills_while_a_file_is_written_leaves_the_older_one(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    checkpoint.save({"weight": torch.ones(3)}, path)

    class FullFile:
        def __init__(self, *arguments):
            self.file = open(*arguments)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "open", FullFile, raising=False)
    with pytest.raises(OSError, match=r"could not write .*weights\.pth .*; the older one is whole"):
        checkpoint.save({"weight": torch.zeros(3)}, path)
    assert torch.equal(read_weights(path)["weight"], torch.ones(3))
    assert os.listdir(tmp_path) == ["weights.pth"]


def test_saving_takes_no_second_copy_in_memory(tmp_path):
    content = {"weight": torch.ones(5_000_000)}
    tracemalloc.start()
    checkpoint.save(content, tmp_path / "weights.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert torch.equal(read_weights(tmp_path / "weights.pth")["weight"], content["weight"])


# Damaged checkpoints, and the one before


def stopped_after(folder, epochs):
    """A run of three epochs that was stopped after so many; returns the path of its last.pt"""

    def step(model, images, labels):
        if len(steps_of(folder)) == epochs * STEPS:
            raise KeyboardInterrupt
        return tiny_step(model, images, labels)

    with pytest.raises(SystemExit):
        train(folder, step=step)
    return folder / "last.pt"


def refusal(folder):
    """The one line that a resumed run ends in"""
    with pytest.raises(ValueError) as refused:
        train(folder, resume=True)
    line = message_of(refused.value)
    assert line and "\n" not in line and "weights_only" not in line
    return line


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stopped_after(folder, 2)
    return folder


@pytest.mark.parametrize("content", [b"", b"<html>", pickle.dumps({"progress": 1}, 2)])
def test_a_checkpoint_that_is_none_is_one_line_that_names_the_one_before(content, tmp_path, stopped):
    folder = shutil.copytree(stopped, tmp_path / "my run")
    (folder / "last.pt").write_bytes(content)
    line = refusal(folder)
    assert f"{folder}/last.pt cannot be read as a checkpoint: it is damaged or none" in line
    assert line.endswith(
        f"of 1 epochs: put it in its place and resume again: mv '{folder}/last.pt.1' '{folder}/last.pt'"
    )


def test_no_flipped_bit_of_a_checkpoint_reaches_the_run(tmp_path, stopped):
    path = tmp_path / "last.pt"
    whole = (stopped / "last.pt").read_bytes()
    archive = zipfile.ZipFile(stopped / "last.pt")
    storages = [entry for entry in archive.infolist() if entry.filename.split("/")[1] == "data" and entry.file_size]
    assert len(storages) > 20
    generator = random.Random(0)
    for entry in storages:
        content = bytearray(whole)
        place = content.index(archive.read(entry)) + generator.randrange(entry.file_size)
        content[place] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        read_weights(path)  # torch takes it as it is
        with pytest.raises(ValueError, match="differs from its checksum"):
            checkpoint.load(path)


@pytest.mark.processes
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, stopped, uninterrupted):
    folder = shutil.copytree(stopped, tmp_path / "run")
    path = folder / "last.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    line = refusal(folder)
    subprocess.run(line.rpartition("resume again: ")[2], shell=True, check=True)
    train(folder, resume=True)
    assert_ended_as_if_never_stopped(folder, uninterrupted)


def test_a_checkpoint_that_is_gone_is_no_reason_to_begin_anew(tmp_path, stopped):
    folder = shutil.copytree(stopped, tmp_path / "run")
    (folder / "last.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*last\.pt\. The one before it is whole, of 1 epochs"):
        train(folder, resume=True)


def test_without_a_whole_checkpoint_a_new_run_is_the_way_out(tmp_path, stopped):
    folder = shutil.copytree(stopped, tmp_path / "run")
    for name in ("last.pt", "last.pt.1"):
        (folder / name).write_bytes(b"PK")
    assert refusal(folder).endswith(f"start a new run under another --exp_name, from {folder}/best.pth")


def without(key):
    return lambda saved: saved.pop(key)


CHANGES = {
    "it has no model": without("model"),
    "it has no optimizer": without("optimizer"),
    "it has no schedule": without("schedule"),
    "it has no progress": without("progress"),
    "its progress is not sound": lambda saved: saved.update(progress=3),
    "its epoch is not sound": lambda saved: saved["progress"].update(epoch="two"),
    "its figures is not sound": lambda saved: saved["progress"].pop("figures"),
    "its model lacks 0.weight": lambda saved: saved["model"].pop("0.weight"),
    "its model has 9.weight": lambda saved: saved["model"].update({"9.weight": torch.ones(1)}),
    "its model has 0.bias of another shape than (8,)": lambda saved: saved["model"].update({"0.bias": torch.ones(9)}),
    "its optimizer has 0 tensors instead of the 18": lambda saved: saved["optimizer"].update(state={}),
    "its optimizer has 15 tensors": lambda saved: saved["optimizer"]["state"].pop(3),
    "its optimizer has exp_avg of parameter 0 of another": lambda saved: saved["optimizer"]["state"][0].update(
        exp_avg=torch.zeros(2)
    ),
    "its optimizer has moments of a parameter 77": lambda saved: saved["optimizer"]["state"].update({77: {}}),
    "its optimizer has other groups": lambda saved: saved["optimizer"]["param_groups"].pop(),
    "its optimizer has a group that has no sound lr": lambda saved: saved["optimizer"]["param_groups"][0].update(
        lr="1"
    ),
    "its schedule has no sound last_epoch": lambda saved: saved["schedule"].pop("last_epoch"),
    "its schedule has no sound base_lrs": lambda saved: saved["schedule"].update(base_lrs=[0.1]),
}


@pytest.mark.parametrize("problem", CHANGES)
def test_a_checkpoint_of_other_content_is_told_in_one_line(problem, tmp_path, stopped):
    folder = shutil.copytree(stopped, tmp_path / "run")
    saved = read_weights(folder / "last.pt")
    CHANGES[problem](saved)
    torch.save(saved, folder / "last.pt")
    line = refusal(folder)
    assert f"last.pt does not fit this run: {problem}" in line and "mv " in line


def test_a_file_system_without_hard_links_keeps_the_checkpoint_before_as_a_copy(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path, kept = tmp_path / "last.pt", tmp_path / "last.pt.1"
    for number in range(3):
        checkpoint.save({"number": number}, path, kept)
    assert checkpoint.load(path) == {"number": 2} and checkpoint.load(kept) == {"number": 1}
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "last.pt.1"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "run").write_text("a file where a folder should be")
    with pytest.raises(OSError, match=r"could not write .*run/last\.pt \(.*\); nothing was written"):
        checkpoint.save({}, tmp_path / "run" / "last.pt")


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def read_only(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(files, "open", read_only, raising=False)
    with pytest.raises(OSError, match=r"could not write .*final\.pth \(Permission denied\); nothing was written"):
        checkpoint.save({}, tmp_path / "final.pth")


# Two at once


@pytest.mark.processes
def test_a_run_that_still_runs_is_refused_and_its_owner_named(tmp_path, begin, uninterrupted):
    folder = tmp_path / "run"
    process = begin(folder, workers=2, resume=False, deadly=("slow",))
    wait_for_lines(folder, STEPS + 1, process)
    with pytest.raises(
        FileExistsError, match=rf"in use by process {process.pid} on {platform.node()}, since .*tiny\.py"
    ):
        train(folder, resume=True)
    assert ended(process) == 0
    assert_ended_as_if_never_stopped(folder, uninterrupted)
    assert (folder / "lock").read_text() == ""
    train(folder, resume=True)


@pytest.mark.processes
def test_the_lock_of_a_killed_run_is_free_though_its_loader_processes_live(tmp_path, begin, uninterrupted):
    folder = tmp_path / "run"
    process = begin(folder, workers=2, resume=False, deadly=("slow",))
    wait_for_lines(folder, STEPS + 1, process)
    process.kill()
    ended(process)
    assert str(process.pid) in (folder / "lock").read_text()
    train(folder, resume=True)
    assert_ended_as_if_never_stopped(folder, uninterrupted)


def test_of_two_runs_that_begin_at_once_one_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileExistsError, match="was made by another process since this one started"):
        train(tmp_path / "run")


@pytest.mark.parametrize(
    ("owner", "free"),
    [
        ({"host": "elsewhere", "process": 1}, False),
        ({"host": platform.node(), "process": os.getppid()}, False),
        ({"host": platform.node(), "process": 2**22 + 1}, True),  # over the greatest number of a process
        ({"host": platform.node(), "process": "none"}, True),
        ("damaged", True),
        ("", True),
    ],
)
def test_without_locks_of_the_system_the_owner_that_is_written_down_decides(tmp_path, monkeypatch, owner, free):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    text = owner if isinstance(owner, str) else json.dumps(owner | {"since": "today", "command": "python tiny.py"})
    (tmp_path / "lock").write_text(text)
    if free:
        FolderLock(tmp_path, "python tiny.py").release()
        assert (tmp_path / "lock").read_text() == ""
    else:
        with pytest.raises(FileExistsError, match=r"or remove .*/lock if that process has ended"):
            FolderLock(tmp_path, "python tiny.py")
        assert (tmp_path / "lock").read_text() == text


def test_two_writers_of_one_file_are_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (tmp_path / "table.md.part").unlink())
    with pytest.raises(OSError, match="Another process writes or removes the same file"):
        files.write_whole(b"cells", tmp_path / "table.md")
