"""What a cluster needs from the machine, and what is said when it is not there."""

import pytest

from devcluster import cluster, programs
from devcluster.errors import Missing


def test_every_tool_of_a_cluster_has_a_package() -> None:
    assert set(cluster.TOOLS) <= programs.PACKAGES.keys()


@pytest.mark.parametrize("tool", cluster.TOOLS)
def test_a_missing_tool_is_answered_with_the_line_that_installs_it(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.shutil, "which", lambda command, path: None if command == tool else command)
    with pytest.raises(Missing, match=r"apt-get install -y [a-z0-9-]+$"):
        programs.require(*cluster.TOOLS)
