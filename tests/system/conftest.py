"""What system tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.systemd import Manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """The service manager of a server that gets its `environment`."""
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()
