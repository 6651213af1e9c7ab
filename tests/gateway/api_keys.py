"""Write key files, and ask with an API key."""

import json
from typing import Any

from chassis.api_keys import authorization, key_sha256
from tests.gateway.scripted import Answer, World, ask, read


def tenant_entry(name: str, *keys: str, **fields: Any) -> str:
    """Return a tenant's entry in a key file."""
    values = {"name": name, "key_sha256": [key_sha256(key) for key in keys], **fields}
    return "[[tenants]]\n" + "".join(f"{field} = {json.dumps(value)}\n" for field, value in values.items())


async def ask_with_key(world: World, key: str, *parts: str | bytes, **options: Any) -> Answer:
    """Ask a question with an API key."""
    return await read(world.stub.Generate(ask(*parts, **options), metadata=[authorization(key)]))
