"""HTML page of the report, whose security policy allows only its own style and script."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from apet.report.content import Content
from apet.report.tables import Table


def render(content: Content) -> str:
    """Render the page. All text of the study is escaped; the security policy names style and script by their hashes."""
    environment = Environment(
        loader=PackageLoader("apet", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = _data
    style, script = (
        files("apet.report").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    return environment.get_template("page.html").render(
        vars(content),
        style=Markup(style),
        script=Markup(script),
        policy="; ".join(
            (
                "default-src 'none'",
                f"style-src '{_hash(style)}'",
                f"script-src '{_hash(script)}'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
    )


def _hash(text: str) -> str:
    """Return a hash-source of the Content Security Policy (W3C, level 3)."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _data(table: Table) -> Markup:
    """Return a table's rows as JSON for a script element, with all HTML characters escaped."""
    details = table.details and {
        "labels": table.details.labels,
        "facts": table.details.facts,
        "columns": [[column.label, column.number] for column in table.details.columns],
        "runs": table.details.runs,
    }
    record = {"choose": [column.choose for column in table.columns], "rows": table.rows, "details": details}
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
