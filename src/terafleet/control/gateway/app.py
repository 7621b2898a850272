"""Puts the gateway together: all routes, who may use them, and how failures are told."""

import asyncio

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide

from terafleet.control.gateway.admin import admin_router
from terafleet.control.gateway.admin_models import MODELS_LOCK_KEY
from terafleet.control.gateway.attempts import Attempts
from terafleet.control.gateway.auth import (
    CONTEXT_KEY,
    provide_caller,
    provide_context,
)
from terafleet.control.gateway.batches import batches_router
from terafleet.control.gateway.context import GatewayContext
from terafleet.control.gateway.description import NEEDS_KEY, get_description, openapi_config
from terafleet.control.gateway.errors import EXCEPTION_HANDLERS
from terafleet.control.gateway.files import files_router
from terafleet.control.gateway.fleet import ATTEMPTS_KEY, fleet_router
from terafleet.control.gateway.health import (
    HEALTH_KEY,
    VERSION,
    HealthCheck,
    Watch,
    get_about,
    get_health,
    get_ready,
)
from terafleet.control.gateway.live.routes import live_router
from terafleet.control.gateway.metrics import METRICS_KEY, Metrics, RequestCount, get_metrics
from terafleet.control.gateway.models import models_router
from terafleet.control.gateway.request_log import RequestLog

BODY_BYTES_MAX = 1024 * 1024
"""For every body that is read as a whole; routes that stream have limits of their own."""


UNWATCHED = Watch()


def create_app(context: GatewayContext, watch: Watch = UNWATCHED) -> Litestar:
    """The gateway as an ASGI application; it holds no state that a second one would miss."""
    metrics = Metrics(watch)
    context.live.observe = metrics.live.observe
    app = Litestar(
        route_handlers=[
            get_about,
            get_health,
            get_ready,
            get_metrics,
            get_description,
            admin_router,
            fleet_router,
            Router(
                "/",
                route_handlers=[files_router, batches_router, models_router, live_router],
                security=NEEDS_KEY,
            ),
        ],
        dependencies={
            "caller": Provide(provide_caller, sync_to_thread=False),
            "context": Provide(provide_context, sync_to_thread=False),
        },
        exception_handlers=EXCEPTION_HANDLERS,
        logging_config=None,
        openapi_config=openapi_config(VERSION),
        request_max_body_size=BODY_BYTES_MAX,
        state=State(
            {
                CONTEXT_KEY: context,
                HEALTH_KEY: HealthCheck(watch.canary),
                METRICS_KEY: metrics,
                MODELS_LOCK_KEY: asyncio.Lock(),
                ATTEMPTS_KEY: Attempts(),
            }
        ),
    )
    app.asgi_handler = RequestLog(RequestCount(app.asgi_handler, metrics), context.new_id)
    return app
