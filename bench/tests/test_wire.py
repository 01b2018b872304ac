"""The stubs in both packages are what protoc makes of the proto today."""

from pathlib import Path

import pytest

from pagoda_bench import proto

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "worker/proto/pagoda/worker/v1/worker.proto"


@pytest.mark.parametrize("package", ["pagoda_router", "pagoda_worker"])
def test_the_stubs_are_fresh(package: str, tmp_path: Path) -> None:
    committed = ROOT / package.removeprefix("pagoda_") / "src" / package / "wire"
    for fresh in proto.generate(PROTO, tmp_path / package / "wire"):
        stub = committed / fresh.name
        assert stub.read_text() == fresh.read_text(), f"{stub.relative_to(ROOT)} is stale: run `make proto`"
