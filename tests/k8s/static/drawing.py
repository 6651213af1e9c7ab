"""Draw the panels of the dashboard from a running Prometheus."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tests.k8s.static.manifests import MONITORING

Series = list[dict[str, Any]]


def draw(path: Path, query_range: Callable[[str], Series]) -> None:
    """Draw all panels into one PNG file.

    Args:
        path: the PNG file to write.
        query_range: evaluates a query over the time to show.
    """
    end_s = time.time()
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(16, 2.3 * rows), layout="constrained")
    places = figure.subplots(rows, 3).flat
    for unused in places[len(panels) :]:
        unused.set_axis_off()
    for axes, panel in zip(places, panels, strict=False):
        for target in panel["targets"]:
            for series in query_range(target["expr"]):
                times_s = [moment - end_s for moment, _ in series["values"]]
                label = target["legendFormat"]
                for name in re.findall(r"\{\{(\w+)\}\}", label):
                    label = label.replace(f"{{{{{name}}}}}", series["metric"].get(name, ""))
                axes.plot(times_s, [float(value) for _, value in series["values"]], label=label.strip() or "none")
        axes.set_title(f"{panel['title']}  [{panel['fieldConfig']['defaults']['unit']}]", fontsize=10, loc="left")
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        if axes.lines:
            axes.legend(fontsize=6, ncols=2, loc="upper left", frameon=False)
    figure.savefig(path, dpi=75)
