"""A build of its own, which shares only the caches with the checkout's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from appliance.image import cleanup, isolation
from appliance.image.converge import copy_tree
from appliance.image.layout import Layout
from appliance.image.steps import step
from appliance.image.tree import base_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def base() -> Path:
    layout = Layout.of_checkout()
    with cleanup.exclusive(layout), step(layout, "base", "Debian tree for the tests") as running:
        return base_tree(layout, running)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A project whose root no other build has, so that a sweep finds only what this test has started."""
    return Layout(root=tmp_path, build=tmp_path / "build")


@pytest.fixture
def building(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    for name in set(os.environ) & {cleanup.MARK}:
        monkeypatch.delenv(name)
    before = dict(os.environ)
    with cleanup.exclusive(layout):
        yield layout
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def tree(base: Path, building: Layout) -> Path:
    copy_tree(base, building.tree)
    isolation.configure(building, building.tree)
    return building.tree
