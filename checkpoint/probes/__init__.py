"""Questions with known answers, and judges of a release's answers."""

from checkpoint.probes.file import (
    PROBES_FILE,
    Probe,
    ProbeMessage,
    Probes,
    merge_probes,
    parse_probes,
    read_probes_file,
)
from checkpoint.probes.graders import Grader, check_grader, open_grader
from checkpoint.probes.judges import Graded, Judge
from checkpoint.probes.verdicts import Judged, Verdict, Verdicts

__all__ = [
    "PROBES_FILE",
    "Graded",
    "Grader",
    "Judge",
    "Judged",
    "Probe",
    "ProbeMessage",
    "Probes",
    "Verdict",
    "Verdicts",
    "check_grader",
    "merge_probes",
    "open_grader",
    "parse_probes",
    "read_probes_file",
]
