"""`pagoda quantize`: its folder means what was computed, is held by the engine as it is, and is there whole or not at all."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from logits_tap import Truth
from quantizable import with_tokenizer, write_text
from random_checkpoint import VOCAB
from safetensors.torch import load_file, save_file

from pagoda_worker.errors import ConfigError, ModelError, UnsupportedModel
from pagoda_worker.layers.attention import attend_sdpa
from pagoda_worker.layers.operators import Operators
from pagoda_worker.layers.rotary import rotary_table
from pagoda_worker.models.files import Safetensors, open_safetensors, read_json
from pagoda_worker.models.llama import Llama
from pagoda_worker.models.llama_config import LlamaConfig
from pagoda_worker.models.registry import load_model
from pagoda_worker.offline.quantize.block import LINEARS, Block
from pagoda_worker.offline.quantize.folding import fold
from pagoda_worker.offline.quantize.run import QuantizeSettings, check_settings, quantize
from pagoda_worker.offline.quantize.walk import Work, quantized_blocks
from pagoda_worker.quantization.grid import Recipe
from pagoda_worker.quantization.sparsity import is_two_of_four
from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, Int8Weight

Checkpoint = Callable[..., Path]
RELATIVES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral with a window": {"model_type": "mistral", "sliding_window": 20, "head_dim": 32},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 words, some far likelier than others."""
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """In bf16, with a tokenizer."""
    return with_tokenizer(checkpoint("in bf16", dtype="bfloat16"), tmp_path / "model")


def block_of(folder: Path, index: int = 0, *, length: int = 48) -> Block:
    config = LlamaConfig.parse(read_json(folder, "config.json"))
    rotary = rotary_table(config.head_dim, length, config.rope, max_position=config.max_position, dtype=torch.float32, device=CPU)
    with open_safetensors(folder) as tensors:
        return Block.read(config, index, tensors, rotary, CPU)


def forward(block: Block, hidden: torch.Tensor) -> torch.Tensor:
    hidden = hidden + block.linear(block.attended(block.norm(hidden, "input_layernorm")), "self_attn.o_proj")
    return hidden + block.linear(block.gated(block.norm(hidden, "post_attention_layernorm")), "mlp.down_proj")


@pytest.mark.parametrize("name", RELATIVES)
def test_a_block_computes_what_transformers_does(checkpoint: Checkpoint, name: str):
    folder = checkpoint(f"to quantize, {name}", **RELATIVES[name])
    ids = torch.randint(VOCAB, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        states = Truth(folder).model(ids, output_hidden_states=True).hidden_states
        torch.testing.assert_close(forward(block_of(folder), states[0]), states[1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", RELATIVES)
def test_folding_changes_the_weights_and_not_what_they_compute(checkpoint: Checkpoint, name: str):
    folder = checkpoint(f"to quantize, {name}", **RELATIVES[name])
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 48, 64, generator=generator)
    block = block_of(folder)
    before, weights = forward(block, hidden), {each: tensor.clone() for each, tensor in block.tensors.items()}

    def choose(linears: list[torch.Tensor], name: str, shared: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return shared(torch.exp(torch.randn(linears[0].shape[1], generator=generator)).clone())

    fold(block, choose, torch.bfloat16)
    changed = {each for each, tensor in block.tensors.items() if not torch.equal(tensor, weights[each])}
    assert {f"{each}.weight" for each in LINEARS} | {"input_layernorm.weight", "post_attention_layernorm.weight"} <= changed
    assert torch.equal(block.tensors["input_layernorm.weight"].bfloat16().float(), block.tensors["input_layernorm.weight"]), (
        "as it is stored"
    )
    torch.testing.assert_close(forward(block, hidden), before, atol=1e-4, rtol=1e-4)


FORMATS: dict[str, tuple[dict[str, Any], type]] = {
    "int4": ({"to": "int4", "group_size": 32}, Int4Weight),
    "int4, asymmetric": ({"to": "int4", "group_size": 32, "symmetric": False}, Int4Weight),
    "int4, by channel": ({"to": "int4", "group_size": -1}, Int4Weight),
    "int4, gptq": ({"to": "int4", "group_size": 32, "method": "gptq", "act_order": True}, Int4Weight),
    "int4, gptq, 2:4": ({"to": "int4", "group_size": 32, "method": "gptq", "sparse": True}, Int4Weight),
    "int4, awq": ({"to": "int4", "group_size": 32, "method": "awq"}, Int4Weight),
    "int8": ({"to": "int8"}, Int8Weight),
    "int8, gptq": ({"to": "int8", "method": "gptq"}, Int8Weight),
    "fp8": ({"to": "fp8"}, Fp8Weight),
}


class Kept(Operators):
    """Remembers what it is to multiply with."""

    def __init__(self) -> None:
        super().__init__(attend_sdpa)
        self.held: list[Any] = []

    def pack(self, weight: Any, *, gated: bool) -> None:
        self.held.append(weight)


@pytest.mark.parametrize("name", FORMATS)
def test_compressed_tensors_and_the_engine_read_the_numbers_that_were_computed(folder: Path, text: Path, tmp_path: Path, name: str):
    settings, form = FORMATS[name]
    out = tmp_path / "quantized"
    made = quantize(folder, out, QuantizeSettings(calibration=text, length=64, samples=8, **settings))
    assert made.linears == len(made.errors) == 14
    raw, stored = read_json(out, "config.json"), read_all(out)
    theirs = decompressed(raw, stored)
    operators = Kept()
    model = load_model(out, raw, max_model_len=64, dtype=torch.float32, device=CPU, operators=operators)
    assert isinstance(model, Llama)
    for fused, held in zip(model.linears(), [*operators.held[1:], operators.held[0]], strict=True):
        if fused.modules[0][0] == "lm_head":
            continue
        assert isinstance(held, form)
        expected = torch.cat([theirs[module] for module, _ in fused.modules])
        torch.testing.assert_close(held.dequantized(torch.float32), expected, rtol=1e-2 if form is Fp8Weight else 8e-3, atol=1e-6)
        assert is_two_of_four(held.dequantized(torch.float32)) == settings.get("sparse", False)


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def decompressed(raw: dict[str, Any], stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By module, by the package compressed-tensors, which multiplies in the dtype of the scales: bf16 here."""
    config = QuantizationConfig.model_validate(raw["quantization_config"])
    (scheme,) = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(config.format)
    found = {}
    for name in [each for each in stored if each.endswith(".weight_scale")]:
        module = name.removesuffix(".weight_scale")
        parts = {part: stored[f"{module}.{part}"] for part in compressor.compression_param_names(scheme) if f"{module}.{part}" in stored}
        found[module] = compressor.decompress(parts, scheme)["weight"].float()
    return found


def test_what_is_plain_stays_as_it_was_and_the_tokenizer_comes_along(folder: Path, tmp_path: Path):
    out = tmp_path / "quantized"
    quantize(folder, out, QuantizeSettings(to="int8"))
    before, after = load_file(folder / "model.safetensors"), read_all(out)
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"):
        assert torch.equal(before[name], after[name])
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (out / "generation_config.json").exists()
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert {name: file.name for file in out.glob("*.safetensors") for name in load_file(file)} == index


def test_calibrated_methods_have_smaller_errors_than_rounding(folder: Path, text: Path, tmp_path: Path):
    errors = {}
    for method in ("rtn", "gptq", "awq"):
        settings = QuantizeSettings(to="int4", method=method, calibration=text, group_size=32, symmetric=False, length=64, samples=16)
        found = quantize(folder, tmp_path / method, settings).errors
        errors[method] = sum(found.values()) / len(found)
    assert errors["gptq"] < 0.7 * errors["rtn"]
    assert errors["awq"] < errors["rtn"]


def test_one_block_is_in_memory_at_a_time(checkpoint: Checkpoint):
    """Each is read when the one before it is forgotten, and nothing else is read."""
    folder = checkpoint("four layers", num_hidden_layers=4)
    config = LlamaConfig.parse(read_json(folder, "config.json"))
    rotary = rotary_table(config.head_dim, 16, config.rope, max_position=256, dtype=torch.float32, device=CPU)
    recipe = Recipe(to="int4", group_size=32, symmetric=True, scale_dtype=torch.float32)
    work = Work(recipe=recipe, method="gptq", act_order=False, sparse=False)
    alive: list[weakref.ref[torch.Tensor]] = []
    with open_safetensors(folder) as tensors:
        read, names = tensors.read, []

        def watched(name: str) -> torch.Tensor:
            assert name.startswith(f"model.layers.{len(seen)}."), "no block before its turn"
            names.append(name)
            assert sum(each() is not None for each in alive) <= 9, "the weights of one block, norms included"
            tensor = read(name).clone()
            alive.append(weakref.ref(tensor))
            return tensor

        tensors.read, tensors.give_back = watched, lambda tensor: None  # type: ignore[method-assign]
        seen: list[int] = []
        hidden = [torch.randn(2, 16, 64)]
        for block in quantized_blocks(config, tensors, hidden, rotary, work, lambda index, name: None):
            seen.append(len(block.weights))
            del block
    assert seen == [7] * 4
    assert len(names) == 4 * 9, "each once"


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_one_block_lives_at_a_time_and_what_was_mapped_is_given_back(
    checkpoint: Checkpoint, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, method: Any
):
    """From reading to writing: memory follows the largest block or table, not their number."""
    folder = with_tokenizer(checkpoint("four layers in bf16", num_hidden_layers=4, dtype="bfloat16"), tmp_path / "model")
    alive: list[weakref.ref[torch.Tensor]] = []
    read_block, read, give_back = Block.read, Safetensors.read, Safetensors.give_back
    mapped: list[int] = []

    def one(*arguments: Any) -> Block:
        assert not any(each() is not None for each in alive), "the block before is forgotten"
        block = read_block(*arguments)
        alive.extend(weakref.ref(each) for each in block.tensors.values())
        return block

    def open_(self: Safetensors, name: str) -> torch.Tensor:
        tensor = read(self, name)
        mapped.append(tensor.data_ptr())
        return tensor

    def close(self: Safetensors, tensor: torch.Tensor) -> None:
        mapped.remove(tensor.data_ptr())
        give_back(self, tensor)

    monkeypatch.setattr(Block, "read", one)
    monkeypatch.setattr(Safetensors, "read", open_)
    monkeypatch.setattr(Safetensors, "give_back", close)
    calibration = None if method == "rtn" else text
    quantize(
        folder, tmp_path / "out", QuantizeSettings(to="int4", method=method, group_size=32, calibration=calibration, samples=4, length=32)
    )
    assert len(alive) == 4 * 9
    assert mapped == []


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "gptq without text": ({"to": "int4", "method": "gptq"}, "--method gptq learns from text: add --calibration FILE"),
    "fp8 by gptq": ({"to": "fp8", "method": "gptq", "calibration": Path("a")}, "--to fp8 .* by --method rtn only"),
    "awq of int8": ({"to": "int8", "method": "awq", "calibration": Path("a")}, "--method awq is for int4; for int8 use gptq or rtn"),
    "zero points of int8": ({"to": "int8", "symmetric": False}, "--asym gives zero points, which int8 does not have"),
    "an order of rtn": ({"to": "int4", "act_order": True}, "--act-order is an order of GPTQ's"),
    "an order of four": (
        {"to": "int4", "method": "gptq", "calibration": Path("a"), "act_order": True, "sparse": True},
        "--sparsity 2:4 decides on four neighbours at a time: leave --act-order out",
    ),
    "sparse fp8": ({"to": "fp8", "sparse": True}, "--sparsity 2:4 is for int8 and int4"),
    "groups of 4": ({"to": "int4", "group_size": 4}, "--group-size is 4; it must be -1 .* or at least 8"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_contradict_each_other_are_refused(case: str):
    settings, sentence = SETTINGS[case]
    with pytest.raises(ConfigError, match=sentence):
        check_settings(QuantizeSettings(**settings))


def change(folder: Path, change_them: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change_them(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def quantize_config(folder: Path, value: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **value}))


SOURCES: dict[str, tuple[Callable[[Path], Any], dict[str, Any], type[Exception], str]] = {
    "quantized already": (
        lambda f: quantize_config(f, {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        {},
        UnsupportedModel,
        "is quantized already: start from the plain checkpoint",
    ),
    "GGUF": (lambda f: [(f / "config.json").unlink(), (f / "a.gguf").write_bytes(b"")], {}, UnsupportedModel, "holds a GGUF file"),
    "an architecture of another family": (
        lambda f: quantize_config(f, {"architectures": ["GPT2LMHeadModel"]}),
        {},
        UnsupportedModel,
        "GPT2LMHeadModel cannot be quantized; LlamaForCausalLM, ",
    ),
    "a tensor missing": (lambda f: change(f, lambda t: t.pop("model.layers.1.mlp.up_proj.weight")), {}, ModelError, "is missing"),
    "groups that do not fit": (
        {}.get,
        {"group_size": 128},
        ConfigError,
        "--group-size 128 does not divide the 64 inputs .* --group-size 64 does|32",
    ),
    "no text": ({}.get, {"method": "gptq", "calibration": Path("/nowhere.txt")}, ConfigError, "--calibration /nowhere.txt cannot be read"),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        {"method": "gptq", "calibration": Path(__file__)},
        ModelError,
        "tokenizer.json does not exist",
    ),
}


@pytest.mark.parametrize("case", SOURCES)
def test_what_cannot_be_quantized_says_why_and_leaves_nothing(folder: Path, tmp_path: Path, case: str):
    break_it, settings, error, sentence = SOURCES[case]
    break_it(folder)
    with pytest.raises(error, match=sentence):
        quantize(folder, tmp_path / "out" / "quantized", QuantizeSettings(**{"to": "int4", "group_size": 32, **settings}))
    assert not any((tmp_path / "out").glob("*") if (tmp_path / "out").exists() else [])


def test_a_folder_that_is_there_is_never_written_to(folder: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("dear diary")
    with pytest.raises(ConfigError, match=r"--out .*mine is there already: name a new folder, or remove it first"):
        quantize(folder, tmp_path / "mine", QuantizeSettings(to="int8"))
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["notes"]


def test_when_it_fails_half_way_nothing_is_left(folder: Path, tmp_path: Path):
    def news(done: int, total: int, name: str) -> None:
        if done == 8:
            assert len(list((tmp_path / "out").iterdir())) == 1, "it is being written"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(folder, tmp_path / "out" / "quantized", QuantizeSettings(to="int8"), news)
    assert not list((tmp_path / "out").iterdir())
