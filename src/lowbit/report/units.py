"""Quantities as people read them: three significant digits and the unit that fits."""

from __future__ import annotations

import math

__all__ = [
    "NOTHING",
    "bytes_text",
    "count_text",
    "decibel_text",
    "interval_text",
    "megabytes_text",
    "microseconds_text",
    "milliseconds_text",
    "number_text",
    "percent_text",
    "ratio_text",
    "signed_text",
]

NOTHING = "–"
"""Stands where there is no value."""


def bytes_text(count: int) -> str:
    """Return a size in decimal units, e.g. `13.6 MB`, as file managers and shops count."""
    return _scaled(float(count), ("B", "KB", "MB", "GB", "TB"))


def megabytes_text(megabytes: float) -> str:
    """Return a size given in MB (10^6 bytes), e.g. `61.0 MB`."""
    return bytes_text(round(megabytes * 1e6))


def milliseconds_text(milliseconds: float) -> str:
    """Return a duration given in milliseconds, e.g. `412 µs`, `9.20 ms` or `1.25 s`."""
    return microseconds_text(milliseconds * 1e3)


def microseconds_text(microseconds: float) -> str:
    """Return a duration given in microseconds, e.g. `412 µs`, `9.20 ms` or `1.25 s`."""
    return _scaled(microseconds, ("µs", "ms", "s"))


def ratio_text(ratio: float) -> str:
    """Return a ratio, e.g. `1.52×`."""
    return f"{number_text(ratio)}×"


def interval_text(low: float, high: float) -> str:
    """Return an interval of ratios, e.g. `1.49–1.55×`."""
    return f"{number_text(low)}–{number_text(high)}×"


def decibel_text(decibel: float | None) -> str:
    """Return an SQNR, e.g. `22.2 dB`; `exact` where there is no noise at all, `undefined` where there is no signal."""
    if decibel is None:
        return NOTHING
    if decibel == math.inf:
        return "exact"
    if not math.isfinite(decibel):
        return "undefined"
    return f"{decibel:.1f} dB".replace("-", "−")


def percent_text(fraction: float) -> str:
    """Return a fraction as a percentage, e.g. `98.7 %`, that says 0 or 100 only where it is exactly so."""
    if 0 < fraction < 0.0001:
        return "< 0.01 %"
    if 0.9999 < fraction < 1:
        return "> 99.99 %"
    decimals = 2 if fraction < 0.01 or 0.9995 <= fraction < 1 else 1
    text = f"{fraction * 100:.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if fraction in (0, 1) else text} %"


def count_text(count: int, noun: str) -> str:
    """Return a count with its noun, e.g. `1 layer` or `1,000 samples`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number_text(value: float) -> str:
    """Return a plain number with three significant digits and a true minus sign, e.g. `−0.0412`."""
    if not math.isfinite(value):
        return str(value).replace("-", "−")
    magnitude = abs(value)
    if magnitude >= 99.95:
        text = f"{value:.0f}" if magnitude < 1e7 else f"{value:.3g}"
    elif magnitude >= 9.995:
        text = f"{value:.1f}"
    elif magnitude >= 0.9995:
        text = f"{value:.2f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")


def signed_text(value: float, decimals: int = 3) -> str:
    """Return a difference with its sign, e.g. `+0.012` or `−0.016`; `±0` where it is lost in rounding."""
    text = f"{value:+.{decimals}f}"
    return "±0" if float(text) == 0 else text.replace("-", "−")


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """Return `value` in the first of `units`, each 1000 times the one before, that leaves less than 1000."""
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{f'{value:.0f}' if unit == 'B' else number_text(value)} {unit}"
        value /= 1000
    return f"{number_text(value)} {units[-1]}"
