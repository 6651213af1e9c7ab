"""The page, and the operators' calls behind it."""

from starlette.routing import BaseRoute

from http_gateway.page.operations import routes as operations_routes
from http_gateway.page.static_files import routes as static_routes

routes: list[BaseRoute] = [*static_routes, *operations_routes]

__all__ = ["routes"]
