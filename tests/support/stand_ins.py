"""Small networks and other stand-ins for what the rooms offer, whichever script or room uses it."""

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from models import NETWORKS

PROJECT = Path(__file__).resolve().parents[2]
TESTS = PROJECT / "tests"


def put_in_place(patch: pytest.MonkeyPatch, instead: dict[str, Any]) -> None:
    """Every module of the project that has imported one of the rooms' names gets another thing by it.

    instead  {"models.segmenter": what stands in for it, ...}: names that a room, or a module of it, offers. Tests keep
             what they have imported themselves
    """
    modules = [*modules_of_the_project()]
    for path, stand_in in instead.items():
        room, name = path.rsplit(".", 1)
        original = getattr(importlib.import_module(room), name)
        found = [(module, key) for module in modules for key, value in vars(module).items() if value is original]
        for module, key in found:
            patch.setattr(module, key, stand_in)
        for network, architecture in NETWORKS.items():
            if architecture.build is original:
                patch.setitem(NETWORKS, network, dataclasses.replace(architecture, build=stand_in))


def modules_of_the_project() -> Iterator[ModuleType]:
    tools = pkgutil.walk_packages([str(PROJECT / "tools")], "tools.")
    for name in (*(script.stem for script in PROJECT.glob("*.py")), *(tool.name for tool in tools)):
        importlib.import_module(name)  # one that came later would keep a stand-in for good
    for module in [*sys.modules.values()]:
        path = Path(getattr(module, "__file__", None) or "/")
        if path.is_relative_to(PROJECT) and not path.is_relative_to(TESTS) and ".venv" not in path.parts:
            yield module
