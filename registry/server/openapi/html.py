"""The documentation page: the OpenAPI document as plain HTML. No script, nothing from elsewhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
from typing import Any

Json = dict[str, Any]

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
code { font-family: ui-monospace, monospace; font-size: .92em; overflow-wrap: anywhere; }
h2 { border-bottom: 1px solid; margin-top: 3rem; }
h3 { margin: 2.5rem 0 0; }
h4 { margin: 1rem 0 0; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #8886; padding: .3rem .8rem .3rem 0; text-align: left;
         vertical-align: top; }
.method { display: inline-block; min-width: 4.5rem; }
nav ul { list-style: none; padding: 0; }
.none { opacity: .7; }
"""

_style_hash = base64.b64encode(sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_style_hash}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The Content-Security-Policy of the page: its own style, and nothing else at all."""


def page(document: Json) -> str:
    """The page of an OpenAPI document."""
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{_text(info['description'])} For programs: "
        '<a href="openapi.json">openapi.json</a>.</p>'
        f"{_contents(document)}{_groups(document)}{_types(document)}</body></html>\n"
    )


def _operations(document: Json) -> Iterable[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _groups(document: Json) -> str:
    return "".join(
        f"<h2>{escape(tag['name'])}</h2>"
        + "".join(
            _operation(method, path, operation)
            for method, path, operation in _operations(document)
            if tag["name"] in operation["tags"]
        )
        for tag in document["tags"]
    )


def _contents(document: Json) -> str:
    lines = "".join(
        f'<li><a href="#{escape(operation["operationId"])}">{_call(method, path)}</a> '
        f"{_text(operation['summary'])}</li>"
        for method, path, operation in _operations(document)
    )
    return f'<nav><ul>{lines}<li><a href="#types">Types</a></li></ul></nav>'


def _call(method: str, path: str) -> str:
    return f'<code><span class="method">{method}</span>{escape(path)}</code>'


def _operation(method: str, path: str, operation: Json) -> str:
    says = operation.get("description")
    return (
        f'<section id="{escape(operation["operationId"])}">'
        f"<h3>{_text(operation['summary'])}</h3><p>{_call(method, path)}</p>"
        + (f"<p>{_text(says)}</p>" if says else "")
        + _parameters(operation["parameters"])
        + _sent(operation.get("requestBody"))
        + _answers(operation["responses"])
        + "</section>"
    )


def _parameters(parameters: list[Json]) -> str:
    rows = [
        (
            f"<code>{escape(each['name'])}</code>",
            escape(each["in"]),
            _schema(each["schema"]),
            _text(each.get("description") or each["schema"].get("description", "")),
        )
        for each in parameters
    ]
    return _table("Parameters", ("Name", "In", "Value", ""), rows)


def _sent(sent: Json | None) -> str:
    if sent is None:
        return ""
    rows = [
        (f"<code>{escape(media_type)}</code>", _schema(content.get("schema", {})))
        for media_type, content in sent["content"].items()
    ]
    needed = "" if sent["required"] else " (may be left out)"
    return _table(f"Body{needed}: {sent['description']}", ("Content type", "Value"), rows)


def _answers(answers: Json) -> str:
    rows = []
    for status, answer in answers.items():
        kinds = dict.fromkeys(
            _schema(content.get("schema", {})) if content else f"<code>{escape(media_type)}</code>"
            for media_type, content in answer.get("content", {}).items()
        )
        headers = ", ".join(f"<code>{escape(name)}</code>" for name in answer["headers"])
        rows.append((status, _text(answer["description"]), "<br>".join(kinds), headers))
    return _table("Answers", ("Status", "", "Body", "Headers"), rows)


def _types(document: Json) -> str:
    return '<h2 id="types">Types</h2>' + "".join(
        f'<section id="type-{escape(name)}"><h3><code>{escape(name)}</code></h3>'
        f"<p>{_text(schema.get('description', ''))}</p>{_fields(schema)}</section>"
        for name, schema in sorted(document["components"]["schemas"].items())
    )


def _fields(schema: Json) -> str:
    if "enum" in schema:
        return f"<p>{_schema(schema)}</p>"
    required = schema.get("required", [])
    rows = [
        (
            f"<code>{escape(name)}</code>",
            _schema(field),
            "" if name in required else "may be missing",
            _text(_description(field)),
        )
        for name, field in schema.get("properties", {}).items()
    ]
    return _table("", ("Field", "Value", "", ""), rows)


def _description(field: Json) -> str:
    found: str = field.get("description", "")
    return found or next(
        (each["description"] for each in field.get("anyOf", ()) if "description" in each), ""
    )


def _schema(schema: Json) -> str:
    """A schema in a few words; a named type is a link."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#type-{name}"><code>{name}</code></a>'
    if "anyOf" in schema:
        return " or ".join(_schema(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"<code>{escape(str(each))}</code>" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_schema(schema['items'])}"
    if schema.get("type") == "object" and "additionalProperties" in schema:
        return f"object of {_schema(schema['additionalProperties'])}"
    return _simple(schema)


def _simple(schema: Json) -> str:
    words = [escape(str(schema.get("format") or schema.get("type", "anything")))]
    if "minimum" in schema and "maximum" in schema:
        words.append(f"{schema['minimum']:g} to {schema['maximum']:g}")
    if "default" in schema and schema["default"] is not None:
        words.append(f"default {escape(str(schema['default']))}")
    return ", ".join(words)


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of cells that are HTML already."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    above = f"<h4>{_text(title)}</h4>" if title else ""
    return f"{above}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    """Plain text; what stands between backquotes is code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
