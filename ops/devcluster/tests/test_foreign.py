"""With KUBECONFIG set the cluster is somebody else's: what makes sense there works, all else ends with one line."""

from pathlib import Path

import pytest
from conftest import Command


@pytest.mark.parametrize("words", [("images",), ("load", "-"), ("stop", "apiserver"), ("start", "kubelet")], ids=lambda words: words[0])
def test_what_makes_no_sense_there_is_one_line_that_names_the_setting(devcluster: Command, tmp_path: Path, words: tuple[str, ...]) -> None:
    ended = devcluster(*words, KUBECONFIG=str(tmp_path / "theirs"))
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"devcluster: KUBECONFIG={tmp_path}/theirs is not ours: ")
    assert ended.stderr.count("\n") == 1


def test_exec_uses_it_and_does_not_pass_it_off_as_ours(devcluster: Command, tmp_path: Path) -> None:
    theirs = str(tmp_path / "theirs")
    ended = devcluster(
        "exec", "--", "sh", "-c", 'echo "$KUBECONFIG ${DEVCLUSTER_DIR-unset} $PATH"', KUBECONFIG=theirs, PAGODA_KUBE_BIN="/kube"
    )
    kubeconfig, folder, path = ended.stdout.split()
    assert (kubeconfig, folder) == (theirs, "unset")
    assert "/kube" in path.split(":")


def test_down_leaves_it_alone(devcluster: Command, tmp_path: Path) -> None:
    ended = devcluster("down", KUBECONFIG=str(tmp_path / "theirs"))
    assert (ended.returncode, ended.stdout) == (0, f"devcluster: KUBECONFIG={tmp_path}/theirs is not ours: left alone\n")
