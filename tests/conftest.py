"""A street world small enough to train on in seconds, drawn once per test session."""

import ctypes
import os

import pytest

from demo.world import draw_negatives, draw_street_hazards
from tests.support.layouts import STREET_SIZE
from tests.support.networks import save_random_weights
from tests.support.tiny import train

pytest.register_assert_rewrite("tests.support.script_runs")


@pytest.fixture(scope="session")
def street_hazards(tmp_path_factory):
    """StreetHazards' folders: 10 training, 3 validation and 5 test frames, three of them in t5 and two in t6."""
    root = tmp_path_factory.mktemp("world") / "street_hazards"
    draw_street_hazards(root, training=10, validation=3, test=5, width=STREET_SIZE[1], height=STREET_SIZE[0])
    return root


@pytest.fixture(scope="session")
def ade20k(tmp_path_factory):
    """ADE20K's folders with four pictures."""
    root = tmp_path_factory.mktemp("negatives") / "ADEChallengeData2016"
    draw_negatives(root, count=4, width=48, height=48)
    return root


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The folder of a finished run of the tiny experiment"""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(folder)
    return folder


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """An empty working directory, where a run writes its logs/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory):
    """{"closed": file, "hybrid": file} of LDN-121 whose BatchNorm statistics fit its random weights"""
    folder = tmp_path_factory.mktemp("weights")
    files = {"closed": folder / "closed.pth", "hybrid": folder / "hybrid.pth"}
    for kind, path in files.items():
        save_random_weights(path, hybrid=kind == "hybrid")
    return files


@pytest.fixture
def rights_count():
    """Rights of files hold for root, too, who passes over them by two capabilities: these are laid down"""
    if not hasattr(os, "geteuid"):
        pytest.skip("no rights as on POSIX")
    if os.geteuid():
        yield
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    before, without = (
        (ctypes.c_uint32 * 6)() for _ in range(2)
    )  # effective, permitted, inheritable; the same of 32-63
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "capset") or libc.capget(header, before):
        pytest.skip("root's rights cannot be laid down here")
    without[:] = before[:]
    without[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert not libc.capset(header, without)
    yield
    assert not libc.capset(header, before)
