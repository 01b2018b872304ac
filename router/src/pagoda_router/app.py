"""The public listener as one ASGI application: which path leads where, who may call it, what an error looks like.

Knows routes, the API key and request ids; what a completion is lives in openai/. `__main__` builds it with `create_app` and serves it.
"""

from collections.abc import Mapping

from pagoda_router.asgi import ASGIApp
from pagoda_router.generation import Catalog, Dispatcher
from pagoda_router.surface import Observer, SilentObserver, SurfaceSettings

NO_ROUTES: Mapping[str, ASGIApp] = {}


def create_app(
    *,
    dispatcher: Dispatcher,
    catalog: Catalog,
    settings: SurfaceSettings,
    observer: Observer | None = None,
    open_routes: Mapping[str, ASGIApp] = NO_ROUTES,
    guarded_routes: Mapping[str, ASGIApp] = NO_ROUTES,
) -> ASGIApp:
    """`open_routes` ("/health": app) answer everyone, `guarded_routes` ("/metrics": app) only with the API key when one is set.

    Both match the exact path and get the scope unchanged. Everything under /v1 and `GET /` is ours.
    """
    raise NotImplementedError((dispatcher, catalog, settings, observer or SilentObserver(), open_routes, guarded_routes))
