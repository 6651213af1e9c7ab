"""The state that all routes share, and its settings."""

from http_gateway.door.client_watch import until_client_leaves
from http_gateway.door.json_bodies import read_json
from http_gateway.door.settings import HttpSettings
from http_gateway.door.state import Door, door_of

__all__ = ["Door", "HttpSettings", "door_of", "read_json", "until_client_leaves"]
