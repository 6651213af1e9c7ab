"""POST /v1/chat/completions: a conversation's answer, whole or streamed."""

from starlette.routing import BaseRoute, Route

from http_gateway.chat.endpoint import ChatCompletions
from http_gateway.chat.messages import build_messages
from http_gateway.chat.request import release_of
from http_gateway.chat.tools import plan_tools

routes: list[BaseRoute] = [Route("/v1/chat/completions", ChatCompletions(), methods=["POST"])]

__all__ = ["build_messages", "plan_tools", "release_of", "routes"]
