"""What Prometheus sees of the vision stage, beside the metrics of every server and every cache."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

DECODE_SECONDS = Histogram(
    "tandem_vision_decode_seconds", "Checking, decoding and resizing one image, seconds.", buckets=_SECONDS
)
QUEUE_SECONDS = Histogram(
    "tandem_vision_queue_seconds", "One image's wait for a place in a batch, seconds.", ["tag"], buckets=_SECONDS
)
FORWARD_SECONDS = Histogram(
    "tandem_vision_forward_seconds", "The forward pass of one batch, seconds.", ["tag"], buckets=_SECONDS
)
BATCH_SIZE = Histogram(
    "tandem_vision_batch_size", "Images in one forward pass.", ["tag"], buckets=(1, 2, 4, 8, 16, 32, 64)
)
DECODING = Gauge("tandem_vision_decoding", "Images that are being decoded or wait for it.")
WAITING = Gauge("tandem_vision_waiting", "Decoded images that wait for a place in a batch.", ["tag"])
REFUSALS = Counter("tandem_vision_refusals", "Images that were not encoded, by reason.", ["reason"])

LEVEL = "vision"  # of the process's cache in the metrics of chassis.cache_metrics
