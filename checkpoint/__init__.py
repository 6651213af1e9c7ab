"""A model on disk: tags, configuration, manifest, weights, presets, inspection."""
