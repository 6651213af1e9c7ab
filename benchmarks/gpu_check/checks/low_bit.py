"""Report whether decoders run with INT8 and INT4 weights."""

from typing import get_args

from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes
from language_service.service import LanguageSettings


def run(sizes: Sizes, rows: RowWriter) -> None:
    """Report the low-bit types that the language service offers."""
    offered = get_args(LanguageSettings.model_fields["precision"].annotation)
    low_bit = [name for name in offered if name.startswith(("int8", "int4"))]
    if low_bit:
        rows.absent(
            "INT8 and INT4 weights", f"the service offers {', '.join(low_bit)}, which this check cannot measure"
        )
    else:
        rows.absent("INT8 and INT4 weights", f"absent: the service offers {', '.join(offered)} only")
