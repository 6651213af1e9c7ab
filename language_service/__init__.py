"""Turn visual and text tokens into a token stream."""
