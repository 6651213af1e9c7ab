"""Turn visual and text tokens into a stream of answer tokens."""
