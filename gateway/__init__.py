"""The door: chat template, pipeline, visual-token cache, releases."""
