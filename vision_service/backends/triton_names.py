"""Names of a vision half in a model repository of Triton."""

from chassis.errors import InvalidArgument
from checkpoint.tags import Tag

_MAX_PART = 999  # of minor and patch, three digits of the version each


def triton_version(tag: Tag) -> str:
    """Return the version of a tag: 1002003 for v1.2.3.

    Raises:
        InvalidArgument: BAD_TAG, it is v0.0.0, or its minor or patch number is above 999.
    """
    version = tag.major * 10**6 + tag.minor * 10**3 + tag.patch
    if max(tag.minor, tag.patch) > _MAX_PART or version == 0:
        raise InvalidArgument(
            f"{tag} has no version in Triton: minor and patch must be at most {_MAX_PART}, and one number above 0.",
            reason="BAD_TAG",
            field="tag",
        )
    return str(version)


def digest_parameter(version: str) -> str:
    """Return the name of the parameter with the export's digest.

    Triton has one configuration for all versions of a model, so the name holds the version.
    """
    return f"tandem_export_digest_{version}"
