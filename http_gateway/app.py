"""Join the routes of all rooms into one application."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from http_gateway import files, models, openapi, operations, tokens
from http_gateway.chat import routes as chat_routes
from http_gateway.door import Door
from http_gateway.page import routes as page_routes
from http_gateway.requests import Requests
from http_gateway.wire.errors import answer_http_exception

ROUTES: list[BaseRoute] = [
    *chat_routes,
    *models.routes,
    *files.routes,
    *tokens.routes,
    *page_routes,
    *operations.routes,
    *openapi.routes,
]


def create_app(door: Door) -> Starlette:
    """Return the application that serves `door`."""
    middleware = [Middleware(Requests, door=door)]
    if door.settings.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(door.settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
        middleware.append(cors)
    app = Starlette(routes=ROUTES, middleware=middleware, exception_handlers={HTTPException: answer_http_exception})
    app.router.redirect_slashes = False  # its redirects repeat the Host header
    app.state.door = door
    return app
