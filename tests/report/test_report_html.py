"""The report is one file that opens anywhere: in a real browser, without network, whatever the model's names are."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lowbit.exceptions import OutputError
from lowbit.plan.verification import OutputQuality
from lowbit.report.html import render_report, write_report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Account

EVIL = "</script><script>document.documentElement.dataset.evil='yes'</script><img src=x onerror=alert(1)>&amp;\u2028'\""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
VOID = {"meta", "input", "br", "link", "img"}


def written(account: Account, path: Path) -> str:
    write_report(
        path,
        title="efficientnet-lite0.onnx",
        plan=account.plan,
        verification=account.verification,
        histograms=account.histograms,
        provenance=account.provenance,
    )
    return path.read_text(encoding="utf-8")


def own_part(page: str) -> str:
    """Return the page without the inlined chart library, whose source is full of addresses that are never requested."""
    start = page.index("plotly.js v")
    return page[:start] + page[page.index("</script>", start) :]


class Outline(HTMLParser):
    """Checks that elements nest, and collects the tags with their attributes and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="session")
def browse() -> Iterator[Callable[..., str]]:
    """Open a file in headless Chromium and return its document after the scripts ran."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no Chromium on this machine: none of {', '.join(BROWSERS)} is on the path")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:

        def run(path: Path, *, width: int = 1280) -> str:
            command = [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={profile}", f"--window-size={width},1600", "--virtual-time-budget=10000",
                "--dump-dom", path.as_uri(),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, timeout=120, check=True)
            return done.stdout.decode("utf-8")

        yield run


def root_attributes(page: str) -> dict[str, str | None]:
    return next(attributes for tag, attributes in Outline(page).tags if tag == "html")


def test_page_is_well_formed_and_says_everything(account: Account, tmp_path: Path) -> None:
    outline = Outline(written(account, tmp_path / "report.html"))
    words = outline.words()
    for expected in (
        "3.77× smaller, 1.52× faster, and top-1 accuracy from 0.884 to 0.868.",
        "Before you trust it",
        "saturation of u8×s8 products",
        "2.7 dB lost in the engine",
        "What stayed in float, and why",
        "depthwise loses in integers: 0.62–0.73× as fast as float here",
        "Measured for the whole model: 9.20 ms and 6.05 ms.",
        "Planned in integers, run in float",
        "QLinearConv",
        "lowbit quantize efficientnet-lite0.onnx --data calib/ --target host -o out.onnx",
        account.plan.model_sha256,
        "1 of 96 channels narrowed against saturation",
    ):
        assert expected in words
    for site in account.plan.sites:
        assert site.node in words
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_page_refers_to_nothing_outside(account: Account, tmp_path: Path) -> None:
    page = written(account, tmp_path / "report.html")
    outline = Outline(page)
    assert not [attributes for _, attributes in outline.tags if {"src", "href", "srcset", "action"} & set(attributes)]
    assert not [tag for tag, _ in outline.tags if tag in {"link", "iframe", "object", "embed", "img"}]
    assert not re.search(r"https?:|//cdn|@import|url\(", own_part(page))
    policy = next(attributes["content"] for tag, attributes in outline.tags if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_equal_arguments_give_equal_bytes(build_account: Callable[..., Account], tmp_path: Path) -> None:
    first, second = build_account(), build_account()
    provenance = dict(reversed(second.provenance.items()))
    written(first, tmp_path / "a.html")
    written(dataclasses.replace(second, provenance=provenance), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_what_is_missing_is_said(account: Account) -> None:
    plan = dataclasses.replace(account.plan, sites=(), warnings=(), options={}, activations=())
    verification = dataclasses.replace(
        account.verification, outputs=(), layers=(), latency=None, metric=None, kernels={}, warnings=(), unfused=()
    )
    words = Outline(
        render_report(title="m", plan=plan, verification=verification, histograms=(), provenance={})
    ).words()
    for expected in (
        "speed not measured", "quality not measured", "No inner tensor was compared.", "No histogram was kept.",
        "Latency was not predicted", "was not asked which kernels it runs",
    ):  # fmt: skip
        assert expected in words
    assert "Before you trust it" not in words


def test_failure_leaves_what_stood_there(account: Account, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"folder.*cannot be written"):
        written(account, tmp_path / "folder")
    with pytest.raises(OutputError, match="cannot be written"):
        written(account, tmp_path / "absent" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert not list((tmp_path / "folder").iterdir())


def test_existing_report_is_replaced_and_nothing_else_is_left(account: Account, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    assert written(account, path).startswith("<!doctype html>")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("width", [500, 1280])
def test_charts_are_drawn_without_errors(
    account: Account, browse: Callable[..., str], tmp_path: Path, width: int
) -> None:
    path = tmp_path / "report.html"
    written(account, path)
    page = browse(path, width=width)
    attributes = root_attributes(own_part(page))
    assert attributes.get("data-ready") == "true"
    assert "data-errors" not in attributes
    layers, histogram = chart(page, "layers-chart"), chart(page, "histogram-chart")
    hidden = sum(layer.sqnr_real_db is None for layer in account.verification.layers)
    assert layers.count('class="point"') == 2 * len(account.verification.layers) - hidden
    assert "worst" in layers
    assert histogram.count('class="point"') >= 200
    assert "60 in all" in page
    assert "255 steps of the grid are in view" in page


def test_requests_are_blocked_and_errors_are_seen(account: Account, browse: Callable[..., str], tmp_path: Path) -> None:
    """The other tests trust that the page itself notes both; here is the proof that it does."""
    path = tmp_path / "report.html"
    page = written(account, path)
    intrusion = '<img src="https://example.invalid/x.png"><script>undefinedName();</script></body>'
    path.write_text(page.replace("</body>", intrusion), encoding="utf-8")
    errors = root_attributes(own_part(browse(path)))["data-errors"] or ""
    assert "blocked https://example.invalid/x.png" in errors
    assert "undefinedName is not defined" in errors


def test_coarse_grids_are_drawn_step_by_step(account: Account, browse: Callable[..., str], tmp_path: Path) -> None:
    coarse = account.histograms[2]
    assert round((coarse.high - coarse.low) / coarse.step) == 14
    path = tmp_path / "report.html"
    written(dataclasses.replace(account, histograms=(coarse,)), path)
    page = browse(path)
    assert "The thin lines are the 15 steps of the grid in view." in page
    # 15 steps, 2 ends, and a shaded band beyond either end.
    assert len(re.findall(r'<path data-index="\d+"', chart(page, "histogram-chart"))) == 19


def test_zooming_brings_out_the_steps_and_tables_filter_and_sort(
    account: Account, browse: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    page = written(account, path)
    actions = """
<script>
  Plotly.relayout("histogram-chart", {"xaxis.range": [0, 0.1]});
  document.querySelector("#sites thead th:nth-child(5) button").click();
  document.querySelector("#sites thead th:nth-child(5) button").click();
  document.getElementById("sites-search").value = "sigmoid FEATURES.0";
  document.getElementById("sites-search").dispatchEvent(new Event("input"));
</script>
</body>"""
    path.write_text(page.replace("</body>", actions), encoding="utf-8")
    page = browse(path)
    assert "data-errors" not in root_attributes(own_part(page))
    steps = len([k for k in range(256) if 0 <= account.histograms[0].low + k * account.histograms[0].step <= 0.1])
    assert f"The thin lines are the {steps} steps of the grid in view." in page
    assert "1 of 60" in page
    times = [site.predicted_us for site in account.plan.sites if site.predicted_us is not None]
    table = page[page.index('id="sites"') :]
    keys = [float(key) for key in re.findall(r'data-value="([^"]+)" data-label="predicted"', table)]
    assert keys == pytest.approx(sorted(times, reverse=True), rel=1e-5)
    assert 'aria-sort="descending"' in table


def test_names_cannot_become_markup(account: Account, browse: Callable[..., str], tmp_path: Path) -> None:
    plan, verification = account.plan, account.verification
    evil = dataclasses.replace(
        account,
        plan=dataclasses.replace(
            plan,
            target=EVIL,
            sites=tuple(
                dataclasses.replace(site, node=f"{EVIL}{index}", op_type=EVIL, reason=EVIL, notes=(EVIL,))
                for index, site in enumerate(plan.sites)
            ),
            warnings=(EVIL,),
            options={EVIL: EVIL},
        ),
        verification=dataclasses.replace(
            verification,
            engine=EVIL,
            outputs=(OutputQuality(name=EVIL, sqnr_real_db=3, sqnr_simulated_db=9, max_error=1, top1_agreement=1),),
            layers=tuple(dataclasses.replace(layer, node=EVIL, op_type=EVIL) for layer in verification.layers),
            kernels={EVIL: 3},
            unfused=(EVIL,),
            metric=None,
        ),
        histograms=tuple(dataclasses.replace(item, tensor=EVIL, format=EVIL) for item in account.histograms),
        provenance={EVIL: EVIL},
    )
    path = tmp_path / "report.html"
    write_report(
        path,
        title=EVIL,
        plan=evil.plan,
        verification=evil.verification,
        histograms=evil.histograms,
        provenance=evil.provenance,
    )
    page = path.read_text(encoding="utf-8")
    assert own_part(page).count("</script>") == own_part(written(account, tmp_path / "tame.html")).count("</script>")
    hover = '<script>Plotly.Fx.hover("layers-chart", [{curveNumber: 0, pointNumber: 3}]);</script></body>'
    path.write_text(page.replace("</body>", hover), encoding="utf-8")
    page = browse(path)
    hovered = chart(page, "layers-chart")
    # The name holds the text &amp; which an unescaped label would show as &; in the document it is escaped once more.
    label = re.sub(r'data-unformatted="[^"]*"', "", hovered[hovered.index('class="hovertext"') :])
    assert label.count("&amp;amp;") == 2
    attributes = root_attributes(own_part(page))
    assert attributes.get("data-ready") == "true"
    assert {"data-evil", "data-errors"}.isdisjoint(attributes)
    assert not [tag for tag, _ in Outline(own_part(page)).tags if tag == "img"]


def test_odd_numbers_are_drawn(account: Account, browse: Callable[..., str], tmp_path: Path) -> None:
    odd = [
        dataclasses.replace(account.verification.layers[0], sqnr_real_db=real, sqnr_simulated_db=simulated)
        for real, simulated in ((np.inf, np.inf), (np.nan, np.nan), (None, -np.inf), (-3.0, 20.0))
    ]
    flat = dataclasses.replace(
        account.histograms[1],
        edges=np.array([0.0, 0.0]),
        counts=np.array([0], dtype=np.int64),
        low=0.0,
        high=0.0,
        step=0.0,
    )
    unbounded = dataclasses.replace(account.histograms[0], low=-np.inf, high=np.inf, step=np.inf)
    path = tmp_path / "report.html"
    for item in (flat, unbounded):
        write_report(
            path,
            title="odd",
            plan=account.plan,
            verification=dataclasses.replace(account.verification, layers=tuple(odd)),
            histograms=[item],
            provenance={},
        )
        attributes = root_attributes(own_part(browse(path)))
        assert attributes.get("data-ready") == "true"
        assert "data-errors" not in attributes


def test_huge_models_stay_small_and_render(
    build_account: Callable[..., Account], browse: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    written(build_account(sites=500, histograms=200), path)
    assert path.stat().st_size < 8_000_000
    page = browse(path)
    attributes = root_attributes(own_part(page))
    assert attributes.get("data-ready") == "true"
    assert "data-errors" not in attributes
    assert "500 in all" in page
    assert "<svg" in chart(page, "layers-chart")


def chart(page: str, name: str) -> str:
    """Return the part of a rendered page from the chart `name` up to the next block after it."""
    start = page.index(f'id="{name}"')
    stop = min(position for mark in ("<details", 'id="histogram-grid"') if (position := page.find(mark, start)) > 0)
    return page[start:stop]
