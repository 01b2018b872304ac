"""Text of an exact number of tokens, built and verified with the model's own tokenizer. Reads `tokenizer.json`; called by prompts.py."""

import random
from pathlib import Path

from tokenizers import Tokenizer

from pagoda_bench.errors import SettingsError

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
]
"""For a server whose tokenizer is not at hand: most tokenizers give each one token."""
_ATTEMPTS = 40
_CANDIDATES = 400


class Filler:
    """With a tokenizer every text has exactly the tokens asked for; without, about as many."""

    def __init__(self, folder: Path | None) -> None:
        """Raises SettingsError."""
        self._tokenizer: Tokenizer | None = None
        self._pieces = [f" {word}" for word in WORDS]
        if folder is None:
            return
        file = folder / "tokenizer.json" if folder.is_dir() else folder
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for a missing or a broken file
            raise SettingsError(f"no tokenizer in {file}: {error}") from error
        self._pieces = self._single_tokens(self._tokenizer)

    @property
    def is_exact(self) -> bool:
        return self._tokenizer is not None

    def count(self, text: str) -> int | None:
        """Tokens without special ones; None without a tokenizer."""
        return None if self._tokenizer is None else len(self._tokenizer.encode(text, add_special_tokens=False))

    def extend(self, text: str, tokens: int, source: random.Random) -> str:
        """`text` with so many tokens more. Raises SettingsError when this tokenizer joins what is added in every attempt."""
        before = self.count(text)
        for _ in range(_ATTEMPTS):
            longer = text + "".join(source.choices(self._pieces, k=tokens))
            if not text:
                longer = longer.lstrip()
            for _ in range(_ATTEMPTS):
                count = self.count(longer)
                if count is None or before is None or count == before + tokens:
                    return longer
                # the first word lost its space, or neighbours joined: add or take at the end
                longer = longer + source.choice(self._pieces) if count < before + tokens else longer[:-1]
        raise SettingsError(f"no text of exactly {tokens} tokens was found with this tokenizer: try another number")

    @staticmethod
    def _single_tokens(tokenizer: Tokenizer) -> list[str]:
        """Pieces that stay one token beside each other; plain words where there are enough, else single letters."""
        ids = random.Random(0).sample(range(tokenizer.get_vocab_size()), k=min(tokenizer.get_vocab_size(), 20_000))
        texts = (tokenizer.decode([i], skip_special_tokens=True) for i in ids)
        words: list[str] = []
        letters: list[str] = []
        for text in texts:
            bare = text.strip()
            if not (bare.isascii() and bare.isalpha()) or len(tokenizer.encode(text * 3, add_special_tokens=False)) != 3:
                continue
            (words if text.startswith(" ") else letters).append(text)
            if len(words) >= _CANDIDATES:
                break
        pieces = words if len(words) >= 20 else letters
        if not pieces:
            raise SettingsError("this tokenizer has no token that stays whole beside its like: use --endpoint completions with token ids")
        return pieces
