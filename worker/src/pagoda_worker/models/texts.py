"""What a model folder says about text: tokenizer.json, its chat template and special tokens, from files or out of a GGUF file's metadata.

Files win over the metadata. Called by the front, which has no torch, by the engine and by commands; knows no tokenizer.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda_worker.errors import ModelError
from pagoda_worker.models.formats.gguf_file import GgufFile, gguf_in, read_header
from pagoda_worker.models.formats.gguf_tokenizer import PREFIX, chat_template_of, special_tokens_of, tokenizer_of

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ModelTexts:
    tokenizer: str
    """tokenizer.json."""
    chat_template: str
    """Empty: it has none."""
    special_tokens: dict[str, str]


def read_texts(folder: Path) -> ModelTexts:
    """Raises ModelError naming the file at fault, UnsupportedModel."""
    file, template = _gguf(folder), folder / TEMPLATE
    tokenizer = _tokenizer(folder, file)
    settings = _read_json(folder / SETTINGS)
    if file is not None and not settings:
        settings = {"chat_template": chat_template_of(file), **special_tokens_of(file)}
    return ModelTexts(
        tokenizer=tokenizer,
        chat_template=template.read_text("utf-8") if template.is_file() else _template_in(settings),
        special_tokens=_special_tokens(settings),
    )


def read_tokenizer_json(folder: Path) -> str:
    """Raises ModelError, UnsupportedModel."""
    return _tokenizer(folder, _gguf(folder))


def _gguf(folder: Path) -> GgufFile | None:
    path = gguf_in(folder)
    return None if path is None else read_header(path, lists_of=PREFIX)


def _tokenizer(folder: Path, file: GgufFile | None) -> str:
    path = folder / TOKENIZER
    if path.is_file():
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
    if file is None:
        raise ModelError(f"{path} does not exist: routers need a fast tokenizer's tokenizer.json beside the weights")
    return json.dumps(tokenizer_of(file), ensure_ascii=False)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no JSON object")
    return content


def _template_in(settings: dict[str, Any]) -> str:
    """Either one string, or a list of named ones of which `default` is for chat."""
    template = settings.get("chat_template") or ""
    if isinstance(template, list):
        named = {each.get("name"): each.get("template", "") for each in template if isinstance(each, dict)}
        template = named.get("default") or ""
    return template if isinstance(template, str) else ""


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """A token is written as a string or as an object with its content."""
    tokens: dict[str, str] = {}
    for name in SPECIAL_TOKENS:
        value = settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return tokens
