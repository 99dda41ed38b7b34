"""Reports: what was decided and measured, as tables in the terminal and as one HTML file.

May import from `lowbit.plan` and `lowbit.exceptions` only: a report shows values, it never computes a model.
"""

from __future__ import annotations

from lowbit.report.html import render_report, write_report
from lowbit.report.terminal import kernels_table, layers_table, reasons_summary, sites_table, summary_table

__all__ = [
    "kernels_table",
    "layers_table",
    "reasons_summary",
    "render_report",
    "sites_table",
    "summary_table",
    "write_report",
]
