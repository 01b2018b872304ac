"""These tests run Triton's kernels in its interpreter, in a process of their own: tests/test_kernels.py starts it. Elsewhere they are not
collected, since the variable must be set before anything imports Triton."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


def patch_languages_once() -> None:
    """A launch puts interpreted functions into triton.language and takes them out afterwards, and each call of a @triton.jit helper looks
    for more to replace: a quarter of these tests' time. Here they stay.

    NOTE: private names of Triton; a version without them fails here.
    """
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    patch: Callable[[Any], Any] = interpreter._patch_lang

    def patch_what_is_plain(function: Any) -> Any:
        languages = [each for each in function.__globals__.values() if each is interpreter.tl or each is interpreter.tl.core]
        if any(is_builtin(each.load) for each in languages):
            patch(function)  # and what it changed is forgotten, not restored
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_what_is_plain


if not collect_ignore_glob:
    patch_languages_once()
