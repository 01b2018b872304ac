"""PromQL that boards share: rates, quantiles and ratios in the one form that is right for counters, histograms and models without traffic.

Pure text. The selectors use the boards' variables; routers name a model `model`, workers, as vLLM does, `model_name`.
"""

from boards.grafana import Query, Variable

ROUTER = 'namespace=~"$namespace",model=~"$model"'
WORKER = 'namespace=~"$namespace",model_name=~"$model"'

NAMESPACE = Variable(name="namespace", label="Namespace", metric="pagoda_router_requests_in_progress", of_label="namespace")
MODEL = Variable(name="model", label="Model", metric='pagoda_router_workers{namespace=~"$namespace"}', of_label="model")


def rate(metric: str, selector: str, by: str = "") -> str:
    """Of a counter, a second, summed over whatever `by` (labels with commas) does not name."""
    return f"sum{_by(by)} (rate({metric}{{{selector}}}[$__rate_interval]))"


def ratio(part: str, whole: str) -> str:
    """Nothing, rather than 0/0, where the whole is nothing."""
    return f"{part} / ({whole} > 0)"


def quantile(share: float, metric: str, selector: str, by: str = "") -> str:
    """Of a histogram."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))"


def mean(metric: str, selector: str, by: str = "") -> str:
    """Of a histogram."""
    return ratio(rate(f"{metric}_sum", selector, by), rate(f"{metric}_count", selector, by))


def quantiles(metric: str, selector: str, *shares: float) -> tuple[Query, ...]:
    return tuple(Query(quantile(share, metric, selector), f"p{share * 100:g}") for share in shares or (0.5, 0.95, 0.99))


def per_model(gauge: str, selector: str = ROUTER, more: str = "") -> str:
    """Of a gauge that every router tells alike: one of them, not their sum."""
    labels = f"namespace, model, {more}" if more else "namespace, model"
    return f"max by ({labels}) ({gauge}{{{selector}}})"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""
