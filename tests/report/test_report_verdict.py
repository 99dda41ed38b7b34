"""The verdict says what the numbers say, the bad news included."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import pytest

from lowbit.plan.plan import Plan, SitePlan
from lowbit.plan.verification import Latency, OutputQuality
from lowbit.report.comparison import compare, predicted_ms, warnings_of
from lowbit.report.reasons import group_reasons
from lowbit.report.verdict import verdict

if TYPE_CHECKING:
    from conftest import Account


def latency(speedup: float, low: float, high: float) -> Latency:
    return Latency(
        float_ms=9.0,
        artifact_ms=9.0 / speedup,
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        pairs=50,
        threads=1,
    )


def test_sentence(account: Account) -> None:
    expected = "3.77× smaller, 1.52× faster, and top-1 accuracy from 0.884 to 0.868."
    assert verdict(account.verification).sentence() == expected


@pytest.mark.parametrize(
    ("measured", "headline", "grade"),
    [
        (latency(1.52, 1.49, 1.55), "1.52× faster", "good"),
        (latency(0.38, 0.37, 0.39), "slower: 0.38×", "poor"),
        (latency(1.01, 0.98, 1.04), "as fast as float (1.01×)", "fair"),
        (None, "speed not measured", "unknown"),
    ],
)
def test_speed_is_judged_by_the_quartiles(
    account: Account, measured: Latency | None, headline: str, grade: str
) -> None:
    finding = verdict(dataclasses.replace(account.verification, latency=measured)).speed
    assert (finding.headline, finding.grade) == (headline, grade)


def test_quality_without_a_metric_is_agreement_and_without_classes_sqnr(account: Account) -> None:
    without = dataclasses.replace(account.verification, metric=None)
    assert verdict(without).quality.headline == "agrees with float on 96.2 %"
    output = OutputQuality(name="mask", sqnr_real_db=-2.5, sqnr_simulated_db=27.6, max_error=3.0)
    finding = verdict(dataclasses.replace(without, outputs=(output,))).quality
    assert finding.headline == "far from float (−2.5 dB)"
    assert "27.6 dB simulated" in finding.detail
    assert finding.grade == "poor"


def test_identical_outputs_are_exact_and_nan_is_not_good(account: Account) -> None:
    without = dataclasses.replace(account.verification, metric=None)
    for value, grade in ((math.inf, "good"), (math.nan, "unknown")):
        output = OutputQuality(name="mask", sqnr_real_db=value, sqnr_simulated_db=value, max_error=0.0)
        assert verdict(dataclasses.replace(without, outputs=(output,))).quality.grade == grade


def test_the_gap_between_simulation_and_engine_is_said(account: Account) -> None:
    rows = {row.label: row for row in compare(account.plan, account.verification)}
    assert rows["SQNR, logits"].change == "simulated 17.1 dB: 2.7 dB lost in the engine"
    assert rows["SQNR, logits"].grade == "poor"
    assert rows["Integer operators"].change == "47 of 60 sites planned, 2 run in float"


def test_larger_and_heavier_artifacts_are_not_called_smaller(account: Account) -> None:
    worse = dataclasses.replace(account.verification, artifact_bytes=40_000_000, artifact_peak_mb=122.6)
    rows = {row.label: row for row in compare(account.plan, worse)}
    assert rows["Size"].change == "2.15× larger"
    assert (rows["Peak memory"].change, rows["Peak memory"].grade) == ("2.00× more", "poor")


def test_warnings_are_said_once(account: Account) -> None:
    doubled = dataclasses.replace(account.verification, warnings=account.plan.warnings * 2)
    assert warnings_of(account.plan, doubled) == account.plan.warnings


def plan_of(*sites: SitePlan) -> Plan:
    return Plan(target="t", method="static", model_sha256="0", sites=sites)


def site(node: str, reason: str, **more: object) -> SitePlan:
    return SitePlan(**{"node": node, "op_type": "Conv", "execution": "float", "reason": reason, **more})


def test_reasons_that_differ_in_numbers_only_are_one_group_with_their_range() -> None:
    plan = plan_of(
        site("a", "0.78× as fast over 12 of 96 channels"),
        site("b", "no kernel"),
        site("c", "0.7× as fast over 12 of 96 channels"),
    )
    groups = group_reasons(plan)
    assert [(group.nodes, group.reason) for group in groups] == [
        (("a", "c"), "0.7–0.78× as fast over 12 of 96 channels"),
        (("b",), "no kernel"),
    ]


def test_digits_of_names_are_not_numbers() -> None:
    plan = plan_of(site("a", "int8 beside conv1"), site("b", "int4 beside conv1"), site("c", "int8 beside conv1"))
    assert [group.nodes for group in group_reasons(plan)] == [("a", "c"), ("b",)]


def test_every_site_is_in_exactly_one_group(account: Account) -> None:
    nodes = [node for group in group_reasons(account.plan) for node in group.nodes]
    assert sorted(nodes) == sorted(site.node for site in account.plan.sites)


def test_predictions_add_up_over_the_same_sites() -> None:
    plan = plan_of(
        site("a", "", predicted_float_us=1000.0, predicted_us=500.0),
        site("b", "", predicted_float_us=700.0),
        site("c", "", predicted_float_us=200.0, predicted_us=200.0),
    )
    assert predicted_ms(plan) == pytest.approx((1.2, 0.7, 2))
    assert predicted_ms(plan_of(site("a", ""))) is None
