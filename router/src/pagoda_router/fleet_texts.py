"""The text rules of each model's variants, as their workers told them: tokenizer, chat template, lengths, features. Owned by the fleet.

Kept on disk too (text/artifacts.py), so that a model without workers can be asked for.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from pagoda_router.catalog import TextAssets
from pagoda_router.discovery.model_object import ModelObject
from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.generation import ModelName
from pagoda_router.text.artifacts import ArtifactCache, StoredDescription


class FleetTexts:
    def __init__(self, artifacts: ArtifactCache) -> None:
        self._artifacts = artifacts
        self._assets: dict[ModelName, dict[str, TextAssets]] = {}
        """By variant."""
        self._common: dict[ModelName, TextAssets] = {}
        """What holds for every variant that takes requests by weight; made of _assets on demand."""

    def of(self, name: ModelName, variant: str | None, model: ModelObject | None) -> TextAssets | None:
        """`variant` None: what holds for all that take requests by weight. None: no worker has described it yet."""
        described = self._assets.get(name)
        if not described:
            return None
        if variant is not None:
            return described.get(variant)
        common = self._common.get(name)
        if common is None:
            weights = dict(model.variants) if model is not None else {}
            common = self._common[name] = _common([a for v, a in described.items() if weights.get(v)] or list(described.values()))
        return common

    def reweighed(self) -> None:
        """Variants or their weights may have changed."""
        self._common.clear()

    def forget(self, name: ModelName) -> None:
        self._assets.pop(name, None)

    def recall(self, model: ModelObject, routable: Collection[str]) -> None:
        """Of a source that is new here. While older workers still answer, what they told stays in force until a newer one tells else."""
        names = {variant: _stored_name(model.name, variant) for variant, _ in model.variants}
        recalled = {variant: self._artifacts.recall(stored, model.source) for variant, stored in names.items()}
        assets = {variant: found for variant, found in recalled.items() if found is not None}
        if assets or not routable:
            self._assets[model.name] = assets

    async def remember(self, endpoint: Endpoint, stored: StoredDescription, routable: Callable[[], Collection[str]]) -> None:
        """What a worker said of itself. `routable`: variants that answer by then. Raises ValueError for a worker that must not be used."""
        name, variant = endpoint.model, endpoint.variant
        assets = await asyncio.to_thread(self._artifacts.assets, stored)
        for other in {*routable()} - {variant}:
            theirs = self._assets.get(name, {}).get(other)
            if theirs is not None and theirs.tokenizer_file != assets.tokenizer_file:
                # A prompt is tokenized before its variant is drawn.
                raise ValueError(f"its tokenizer is not the one of variant {other}: variants of one model share a tokenizer")
        self._assets.setdefault(name, {})[variant] = assets
        self._common.pop(name, None)
        await asyncio.to_thread(self._artifacts.remember, _stored_name(name, variant), stored)


def _stored_name(model: ModelName, variant: str) -> str:
    return model if variant == "default" else f"{model}/{variant}"


def _common(described: Sequence[TextAssets]) -> TextAssets:
    """What every one of them takes."""
    first, *others = described
    if not others:
        return first
    return replace(
        first,
        max_model_len=min(assets.max_model_len for assets in described),
        max_sequences_per_request=min(assets.max_sequences_per_request for assets in described),
        max_top_logprobs=min(assets.max_top_logprobs for assets in described),
        features=frozenset.intersection(*told)
        if (told := [assets.features for assets in described if assets.features is not None])
        else None,
    )
