"""What `kubectl apply` says to a manifest that cannot work: what to write instead. The whole table runs in the operator's tests."""

import json

import pytest
from conftest import Installation, quickstart
from kube import CommandFailed, Object

BAD: dict[str, tuple[Object, str]] = {
    "a dtype that is not there": ({"engine": {"dtype": "int3"}}, "write auto, bf16, fp16 or fp32"),
    "a source without a scheme": ({"model": {"source": "Qwen/Qwen3-8B"}}, "hf://ORG/NAME"),
    "a maximum below the minimum": ({"scaling": {"min": 3, "max": 1}}, "max"),
    "memory without a unit": ({"resources": {"memory": "4"}}, "16Gi"),
    "a field that nothing carries out": ({"fallback": "other"}, "fallback"),
    "a promise without a unit": ({"slo": {"ttft": "500"}}, "500ms"),
    "replicas where Pagoda scales": ({"scaling": {"replicas": 2}}, "external"),
}


@pytest.mark.parametrize(("spec", "words"), BAD.values(), ids=BAD)
def test_a_bad_manifest_is_refused_with_what_to_write(installation: Installation, spec: Object, words: str) -> None:
    with pytest.raises(CommandFailed) as refusal:
        installation.models.kubectl("apply", "-f", "-", stdin=json.dumps(quickstart(name="refused", spec=spec)))
    assert words in str(refusal.value)
