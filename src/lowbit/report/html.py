"""The report: one HTML file that needs nothing else, today or in ten years."""

from __future__ import annotations

import os
import secrets
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from lowbit.exceptions import OutputError
from lowbit.report import operators, overview, quality, speed
from lowbit.report.charts import histogram_data, layers_data
from lowbit.report.markup import Markup, embedded_json, join

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowbit.plan.plan import Plan
    from lowbit.plan.verification import TensorHistogram, Verification

__all__ = ["render_report", "write_report"]


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    plan: Plan,
    verification: Verification,
    histograms: Sequence[TensorHistogram],
    provenance: Mapping[str, str],
) -> None:
    """Write the report as one self-contained HTML file, whole or not at all.

    Args:
        path: Where to write; a file that stands there is replaced in one step.
        title: Name of the model.
        plan: What was decided.
        verification: What was measured.
        histograms: Weight and activation tensors to show with their grids.
        provenance: Names and values to print at the end: versions, command, seed, digests, date.

    Raises:
        OutputError: The file cannot be written.
    """
    page = render_report(
        title=title, plan=plan, verification=verification, histograms=histograms, provenance=provenance
    )
    _replace(Path(path), page.encode("utf-8"))


def render_report(
    *,
    title: str,
    plan: Plan,
    verification: Verification,
    histograms: Sequence[TensorHistogram],
    provenance: Mapping[str, str],
) -> str:
    """Return the report as HTML; equal arguments give equal text."""
    from plotly.offline import get_plotlyjs

    body = join(
        overview.headline_section(title, plan, verification),
        overview.warnings_section(plan, verification),
        overview.comparison_section(plan, verification),
        speed.timeline_section(verification),
        quality.layers_section(verification.layers),
        quality.histograms_section(histograms),
        overview.reasons_section(plan),
        operators.sites_section(plan, verification),
        speed.contract_section(verification),
        speed.hazards_section(verification),
        operators.kernels_section(verification),
        overview.provenance_section(plan, provenance),
    )
    data = {
        "layers": layers_data(verification.layers),
        "histograms": [histogram_data(histogram) for histogram in histograms],
    }
    return Template(_asset("report.html")).substitute(
        title=join(f"{title} – lowbit report"),
        css=_asset("report.css"),
        body=body,
        data=embedded_json(data),
        # A library may spell the end tag inside a string; the backslash changes nothing in JavaScript.
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        js=_asset("report.js"),
    )


def _asset(name: str) -> str:
    return (resources.files("lowbit.report") / "assets" / name).read_text(encoding="utf-8")


def _replace(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and rename it into place, so that no reader ever sees half a file."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"the report {str(path)!r} cannot be written",
            cause=error.strerror or str(error),
            remedy="choose a writable path with enough space",
        ) from error
