"""How far one model's distributions lie from another's, and what either makes of the true text. Pure arithmetic on arrays.

Called by measure.py with arrays that lie in files: they are read a slice at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pagoda_bench.errors import BenchError

SLICE_VALUES = 1 << 22
RESAMPLES = 1000
Distributions = npt.NDArray[np.float32]
"""[places, vocabulary] natural logarithms of probabilities."""


class NotFinite(BenchError):
    """A model whose distributions are no numbers cannot be judged."""


@dataclass(frozen=True, slots=True)
class Places:
    """Per place of a text, float64 unless said otherwise."""

    reference_loss: npt.NDArray[np.float64]
    """Nats: minus the logarithm of what the reference gave the true token."""
    loss: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    """Nats, KL(reference ‖ other) over the whole vocabulary: what coding the reference's tokens with the other's numbers costs more."""
    same_top: npt.NDArray[np.bool_]
    """Both hold the same token most likely; of equally likely ones the first counts."""

    def at(self, chosen: npt.NDArray[np.bool_]) -> "Places":
        return Places(self.reference_loss[chosen], self.loss[chosen], self.kl[chosen], self.same_top[chosen])


@dataclass(frozen=True, slots=True)
class Drift:
    places: int
    perplexity: float
    perplexity_ratio: float
    """To the reference's, on the same tokens."""
    ratio_low: float
    """95 % interval of the ratio: bootstrap over documents, whose tokens depend on each other."""
    ratio_high: float
    kl_mean: float
    kl_p50: float
    kl_p99: float
    kl_max: float
    top1_agreement: float


def compare(reference: Distributions, other: Distributions, targets: npt.NDArray[np.int64]) -> Places:
    """Raises NotFinite. Rounding may make a KL of equals negative by its last place: it is 0 then."""
    parts = list(_slices(reference, other, targets))
    return Places(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _slices(
    reference: Distributions, other: Distributions, targets: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]]:
    rows = max(1, SLICE_VALUES // reference.shape[1])
    for start in range(0, len(targets), rows):
        p, q = (np.asarray(each[start : start + rows], np.float64) for each in (reference, other))
        for name, part in (("the first model's", p), ("its", q)):
            if np.isnan(part).any() or not np.isfinite(part.max(axis=1)).all():
                raise NotFinite(f"{name} distributions are not finite near place {start}: the format does not hold this model's numbers")
        share = np.exp(p)
        with np.errstate(invalid="ignore"):  # what the reference holds impossible adds nothing, even where both say -inf
            kl = np.where(share > 0, share * (p - q), 0.0).sum(axis=1)
        at = targets[start : start + rows, None]
        losses = (-np.take_along_axis(each, at, axis=1)[:, 0] for each in (p, q))
        yield *losses, np.maximum(kl, 0.0), p.argmax(axis=1) == q.argmax(axis=1)


def summarize(places: Places, owners: npt.NDArray[np.int64], *, seed: int = 0) -> Drift:
    """owners [places]: the document of each."""
    p50, p99 = np.percentile(places.kl, (50, 99))
    low, high = _interval(places.loss - places.reference_loss, owners, seed)
    return Drift(
        places=len(places.loss),
        perplexity=float(np.exp(places.loss.mean())),
        perplexity_ratio=float(np.exp(places.loss.mean() - places.reference_loss.mean())),
        ratio_low=low,
        ratio_high=high,
        kl_mean=float(places.kl.mean()),
        kl_p50=float(p50),
        kl_p99=float(p99),
        kl_max=float(places.kl.max()),
        top1_agreement=float(places.same_top.mean()),
    )


def _interval(excess: npt.NDArray[np.float64], owners: npt.NDArray[np.int64], seed: int) -> tuple[float, float]:
    """Of exp(mean of `excess`), resampling whole documents."""
    _, numbers = np.unique(owners, return_inverse=True)
    sums, counts = np.bincount(numbers, weights=excess), np.bincount(numbers)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.exp(np.percentile(means, (2.5, 97.5)))
    return float(low), float(high)
