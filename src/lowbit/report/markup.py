"""HTML that escapes by default: text is text until it has been through `element`."""

from __future__ import annotations

import html
import json
from typing import Any

__all__ = ["Markup", "element", "embedded_json", "join", "section"]


class Markup(str):
    """A string that is HTML already. Only `element` and `join` make it, so nothing unescaped can slip in."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | None) -> Markup:
    """Return `<tag …>children</tag>`.

    Args:
        tag: Name of the element.
        children: Contents; what is not `Markup` is escaped.
        attributes: Attributes; a trailing underscore is dropped and inner ones become hyphens (`class_`, `data_label`);
            `None` leaves the attribute out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = join(*children)
    return Markup(f"<{tag}{written}>" if tag in ("input", "br") else f"<{tag}{written}>{inside}</{tag}>")


def join(*children: str) -> Markup:
    """Return the children one after the other, escaped where they are not `Markup`."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(child) for child in children))


def section(title: str, lead: str, *children: str) -> Markup:
    """Return a section of the page with its title and an introduction, if there is one."""
    return element("section", element("h2", title), element("p", lead, class_="lead") if lead else Markup(), *children)


def embedded_json(value: Any) -> str:
    """Return JSON that may stand inside a `<script>` element: no character of it can end the element.

    Raises:
        ValueError: `value` holds NaN or infinity.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
