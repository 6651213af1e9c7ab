"""The HTTP door: OpenAI's API and a page for the gateway."""
