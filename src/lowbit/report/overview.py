"""The overview: the verdict, the comparison with float, the reasons and the provenance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.plan.plan import EXECUTIONS, Plan
from lowbit.report.comparison import compare, warnings_of
from lowbit.report.markup import Markup, element, join, section
from lowbit.report.reasons import ReasonGroup, group_reasons
from lowbit.report.units import (
    count_text,
)
from lowbit.report.verdict import verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowbit.plan.verification import Verification


__all__ = ["comparison_section", "headline_section", "provenance_section", "reasons_section", "warnings_section"]


def headline_section(title: str, plan: Plan, verification: Verification) -> Markup:
    """Return the verdict in plain words, and the three findings that it rests on."""
    judged = verdict(verification)
    findings = (("Size", judged.size), ("Speed", judged.speed), ("Quality", judged.quality))
    measured = f"{plan.method} for {plan.target}, measured in {verification.engine}"
    return element(
        "header",
        element("h1", title),
        element("p", measured, class_="quiet"),
        element("p", *(element("span", clause) for clause in judged.clauses()), class_="verdict"),
        element(
            "dl",
            *(
                element(
                    "div",
                    element("dt", name),
                    element("dd", finding.headline),
                    element("dd", finding.detail),
                    class_=finding.grade,
                )
                for name, finding in findings
            ),
            class_="findings",
        ),
    )


def warnings_section(plan: Plan, verification: Verification) -> Markup:
    """Return what the reader must know, or nothing if there is nothing to know."""
    warnings = warnings_of(plan, verification)
    if not warnings:
        return Markup()
    items = (element("li", warning) for warning in warnings)
    return element("section", element("h2", "Before you trust it"), element("ul", *items), class_="warnings")


def comparison_section(plan: Plan, verification: Verification) -> Markup:
    """Return every measured quantity of both models in a table."""
    rows = (
        element(
            "tr",
            element("th", row.label, element("small", row.condition), scope="row"),
            element("td", row.float_text, class_="num", data_label="float"),
            element("td", row.artifact_text, class_="num", data_label="artifact"),
            element("td", row.change, class_=f"full {row.grade}"),
        )
        for row in compare(plan, verification)
    )
    head = element(
        "tr",
        element("th", "", scope="col"),
        element("th", "float", scope="col", class_="num"),
        element("th", "artifact", scope="col", class_="num"),
        element("th", "change", scope="col"),
    )
    return section(
        "Float beside the artifact",
        "",
        element("table", element("thead", head), element("tbody", *rows), class_="cards comparison"),
    )


def reasons_section(plan: Plan) -> Markup:
    """Return what stayed in float and why, and then the other decisions, grouped by reason."""
    stayed = group_reasons(plan, ("float",))
    others = group_reasons(plan, [name for name in EXECUTIONS if name != "float"])
    parts = []
    if stayed:
        parts.append(section("What stayed in float, and why", "", _reasons(stayed)))
    else:
        parts.append(section("What stayed in float, and why", "Nothing: every operator is compressed."))
    if others:
        parts.append(section("What was compressed, and why", "", _reasons(others)))
    return join(*parts)


def provenance_section(plan: Plan, provenance: Mapping[str, str]) -> Markup:
    """Return where the artifact comes from: what the caller knows, and what the plan records."""
    options = {f"option {name}": str(value) for name, value in sorted(plan.options.items())}
    recorded = {"target": plan.target, "method": plan.method, "model sha256": plan.model_sha256, **options}
    entries = {**recorded, **dict(sorted(provenance.items()))}
    items = (join(element("dt", name), element("dd", value, class_="name")) for name, value in entries.items())
    return section("Provenance", "", element("dl", *items, class_="provenance"))


def _reasons(groups: Sequence[ReasonGroup]) -> Markup:
    items = []
    for group in groups:
        nodes = (element("li", element("span", node, class_="name")) for node in group.nodes)
        formats = join(" ", element("span", group.formats, class_="quiet")) if group.formats else Markup()
        items.append(
            element(
                "li",
                element("span", f"{len(group.nodes)} ×", class_="times"),
                element(
                    "div",
                    element("strong", group.op_type),
                    " ",
                    element("span", group.execution, class_=f"run run-{group.execution}"),
                    formats,
                    element("br"),
                    group.reason,
                    element("details", element("summary", count_text(len(group.nodes), "node")), element("ul", *nodes)),
                ),
            )
        )
    return element("ul", *items, class_="reasons")
