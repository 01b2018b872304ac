"""What control groups allow, read from folders that look like both versions' file systems."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pagoda_worker.loading.limits import Limits

Files = dict[str, str]
World = Callable[[Files], Limits]


@pytest.fixture
def world(tmp_path: Path) -> World:
    def build(files: Files) -> Limits:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return Limits(tmp_path)

    return build


UNIFIED = {"proc/self/cgroup": "0::/\n"}
LEGACY = {"proc/self/cgroup": "4:memory:/kubepods/pod1\n2:cpuacct,cpu:/kubepods/pod1\n0::/\n"}

MEMORY: list[tuple[str, Files, int | None]] = [
    ("nothing to read", {}, None),
    ("no limit", {**UNIFIED, "sys/fs/cgroup/memory.max": "max\n"}, None),
    ("a container's", {**UNIFIED, "sys/fs/cgroup/memory.max": "1073741824\n"}, 1 << 30),
    (
        "the stricter one above",
        {
            "proc/self/cgroup": "0::/slice/unit\n",
            "sys/fs/cgroup/slice/unit/memory.max": "max",
            "sys/fs/cgroup/slice/memory.max": str(2 << 30),
        },
        2 << 30,
    ),
    ("version 1, seen from inside", {**LEGACY, "sys/fs/cgroup/memory/memory.limit_in_bytes": str(3 << 30)}, 3 << 30),
    ("version 1, own folder", {**LEGACY, "sys/fs/cgroup/memory/kubepods/pod1/memory.limit_in_bytes": str(1 << 30)}, 1 << 30),
    ("version 1 without one", {**LEGACY, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, None),
    ("a path with two slashes", {"proc/self/cgroup": "0:://a/../b\n", "sys/fs/cgroup/b/memory.max": "4096"}, 4096),
]


@pytest.mark.parametrize(("files", "limit"), [case[1:] for case in MEMORY], ids=[case[0] for case in MEMORY])
def test_the_memory_limit(world: World, files: Files, limit: int | None):
    assert world(files).memory_bytes() == limit


CPUS: list[tuple[str, Files, int | None]] = [
    ("no quota", {**UNIFIED, "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    ("half a CPU", {**UNIFIED, "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    ("two and a half", {**UNIFIED, "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
    (
        "version 1",
        {**LEGACY, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
        4,
    ),
    (
        "version 1 without one",
        {**LEGACY, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    ("nothing to read", {}, None),
]


@pytest.mark.parametrize(("files", "cpus"), [case[1:] for case in CPUS], ids=[case[0] for case in CPUS])
def test_the_cpu_quota_in_whole_cpus(world: World, files: Files, cpus: int | None):
    assert world(files).cpus() == cpus


def test_used_memory_is_without_what_the_kernel_gives_back(world: World):
    stat = "anon 500\nactive_file 200\ninactive_file 100\n"
    assert world({**UNIFIED, "sys/fs/cgroup/memory.current": "1000\n", "sys/fs/cgroup/memory.stat": stat}).memory_used_bytes() == 700
    legacy = {"sys/fs/cgroup/memory/memory.usage_in_bytes": "1000", "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 400\n"}
    assert world({**LEGACY, **legacy}).memory_used_bytes() == 600


def test_kills_for_memory_are_counted(world: World):
    assert world(UNIFIED).memory_kills() == 0
    assert world({**UNIFIED, "sys/fs/cgroup/memory.events": "oom 5\noom_kill 2\n"}).memory_kills() == 2
    assert world({**LEGACY, "sys/fs/cgroup/memory/memory.oom_control": "under_oom 0\noom_kill 7\n"}).memory_kills() == 7


def test_this_machine_can_be_asked():
    limits = Limits()
    assert limits.memory_available_bytes() > 0
    assert (limits.memory_bytes() or 1) > 0
    assert (limits.cpus() or 1) >= 1
    assert limits.memory_kills() >= 0


SIBLINGS = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def test_one_thread_of_each_core_is_chosen(world: World):
    files = {SIBLINGS.format(cpu): f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in range(8)}
    assert world(files).cores(range(8)) == [0, 1, 2, 3]
    assert world(files).cores({1, 5, 6}) == [1, 6]
    assert world({}).cores({2, 3}) == [2, 3], "a machine that does not tell has a core for each"


@pytest.mark.parametrize(("online", "allowed", "owned"), [("0-7\n", {0, 1}, True), ("0-3,8\n", {0, 1, 2, 3, 8}, False), ("", {0}, False)])
def test_cpus_are_owned_where_the_machine_has_more(world: World, online: str, allowed: set[int], owned: bool):
    assert world({"sys/devices/system/cpu/online": online}).owned_cpus(allowed) is owned
