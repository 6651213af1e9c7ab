"""Let Pillow read HEIC, if the extra `heif` is installed."""


def register_heif() -> tuple[str, ...]:
    """Add HEIC to Pillow's formats and return its name.

    Returns nothing without the extra.
    """
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return ()
    register_heif_opener(thumbnails=False)
    return ("HEIF",)
