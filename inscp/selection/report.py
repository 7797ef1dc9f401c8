"""The report on a selection: a JSON object, a self-contained HTML page, and a few lines for the terminal."""

import io
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from inscp.plotting import names_as_written, plain_logarithm
from inscp.selection.select import Funnel, Histogram

JSON, HTML = "_report.json", "_report.html"
"""Names that readers of data folders ignore."""


def as_dict(funnel: Funnel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the page shows.

    Args:
        funnel: a funnel that has run.
        settings: how the selection was made: its fingerprint, sources, scores, replay.
    """
    steps = [{**vars(step), "dropped": dict(step.dropped.most_common())} for step in funnel.steps]
    edges = Histogram.edges().tolist()
    return dict(settings) | {
        "before": funnel.before.as_dict(),
        "after": funnel.after.as_dict(),
        "filters": steps,
        "kept_examples": funnel.kept_examples,
        "histogram_edges": edges,
    }


def lines(report: Mapping[str, Any]) -> list[str]:
    """The funnel as plain text."""
    before = report["before"]
    rows = [("read", sum(before["records"].values()), sum(before["tokens"].values()), "")]
    for step in report["filters"]:
        dropped = ", ".join(f"{why} {count:,}" for why, count in list(step["dropped"].items())[:4])
        masked = ", ".join(f"{kind} {count:,}" for kind, count in step["found"].get("masked", {}).items())
        rows.append((step["name"], step["records"], step["tokens"], dropped or (masked and f"masked: {masked}")))
    if replay := report.get("replay"):
        rows.append(("+ replay", replay["records"], replay["tokens"], replay["path"]))
    table = [f"{name:<18}{records:>12,}{tokens:>14,}   {why}".rstrip() for name, records, tokens, why in rows]
    return [f"{'':<18}{'records':>12}{'tokens':>14}   dropped", *table]


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Write the JSON and HTML reports into the folder of the selection."""
    (folder / JSON).write_text(json.dumps(report, indent=1, ensure_ascii=False), "utf-8")
    (folder / HTML).write_text(_page(report), "utf-8")


def _page(report: Mapping[str, Any]) -> str:
    template = files(__package__).joinpath("report.html.jinja").read_text("utf-8")
    plots = [
        ("Perplexity", _plot(report, "perplexity", "Perplexity")),
        ("Tokens per record", _plot(report, "length", "Length")),
    ]
    environment = Environment(autoescape=True)
    return environment.from_string(template).render(
        report=report,
        plots=[(name, svg) for name, svg in plots if svg],
        read=sum(report["before"]["records"].values()),
        read_tokens=sum(report["before"]["tokens"].values()),
    )


@names_as_written()
def _plot(report: Mapping[str, Any], what: str, filter_name: str) -> str:
    """Histograms before (grey) and after (blue), one row per source, with the thresholds of the filter, as SVG."""
    import matplotlib.figure

    before, after = report["before"][what], report["after"][what]
    if not before:
        return ""
    edges = np.asarray(report["histogram_edges"])
    figure = matplotlib.figure.Figure(figsize=(8, 0.6 + 1.3 * len(before)), layout="constrained")
    axes = figure.subplots(len(before), 1, sharex=True, squeeze=False)[:, 0]
    used = np.flatnonzero(np.sum(list(before.values()), axis=0))
    for axis, (source, counts) in zip(axes, before.items(), strict=True):
        axis.stairs(counts, edges, fill=True, color="#c9ced6", label="read")
        if source in after:
            axis.stairs(after[source], edges, fill=True, color="#2f6db5", label="kept")
        for found in (step["found"] for step in report["filters"] if step["name"] == filter_name):
            for bound in [*found["absolute"], *found.get("bounds", {}).get(source, [])]:
                axis.axvline(bound, color="#c0392b", linewidth=1)
        plain_logarithm(axis)
        axis.set_xlim(edges[used[0]], edges[used[-1] + 1])
        axis.set_title(source, loc="left", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, frameon=False)
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue().partition("?>")[2].partition(">")[2]  # without the XML declaration and document type
