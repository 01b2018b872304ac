"""What is taken away of a folder that every kubelet of a machine uses: what ours made, and nothing of another's that is stopped."""

from pathlib import Path

import pytest

from devcluster import leftovers


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    return tmp_path / "kubelet/device-plugins"


def run_a_kubelet(plugins: Path) -> None:
    plugins.mkdir(parents=True, exist_ok=True)
    for name in ("kubelet.sock", "kubelet_internal_checkpoint"):
        (plugins / name).write_text("ours")


def test_what_our_kubelet_made_is_removed_with_its_folder(state: Path, plugins: Path) -> None:
    leftovers.remember_device_plugins(state, plugins)
    run_a_kubelet(plugins)
    leftovers.remove_device_plugins(state, plugins)
    assert not plugins.exists()


def test_what_a_stopped_kubelet_of_another_left_there_stays(state: Path, plugins: Path) -> None:
    plugins.mkdir(parents=True)
    (plugins / "kubelet_internal_checkpoint").write_text("theirs")
    leftovers.remember_device_plugins(state, plugins)
    run_a_kubelet(plugins)
    leftovers.remove_device_plugins(state, plugins)
    assert [path.name for path in plugins.iterdir()] == ["kubelet_internal_checkpoint"]


def test_without_a_cluster_of_ours_nothing_is_removed(state: Path, plugins: Path) -> None:
    run_a_kubelet(plugins)
    leftovers.remove_device_plugins(state, plugins)
    assert len(list(plugins.iterdir())) == 2
