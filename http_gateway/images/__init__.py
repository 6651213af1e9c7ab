"""Turn the URLs of images into images of the gateway's contract."""

from http_gateway.images.hosts import ImageHosts
from http_gateway.images.reader import ImageReader, RequestImages, open_image_reader

__all__ = ["ImageHosts", "ImageReader", "RequestImages", "open_image_reader"]
