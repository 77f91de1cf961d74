"""A form as one HTML page that needs nothing else, asks for nothing, and ends in a file to send back."""

from importlib.resources import files

from harness.human._forms import Form
from harness.human._returned import RATINGS
from harness.report._html import Html, csp_hash, json_script, tag

__all__ = ["form_page"]


def _asset(name: str) -> str:
    return files("harness.human").joinpath(name).read_text(encoding="utf-8")


def form_page(form: Form) -> str:
    """The page. Prompts and answers are in it as JSON that no browser takes for markup, and enter it as text alone."""
    script = _asset("form.js")
    policy = (
        f"default-src 'none'; script-src {csp_hash(script)}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'none'; form-action 'none'; base-uri 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", f"Rating form {form.content['number']}"),
        tag("style", Html(_asset("form.css"))),
    )
    data = json_script("form", {"content": form.content, "digest": form.digest, "format": RATINGS})
    body = tag(
        "body",
        tag("noscript", tag("p", "This form needs JavaScript, which is switched off in this browser.")),
        tag("main", id="main", tabindex="-1"),
        tag("p", id="status", role="status", aria_live="polite"),
        data,
        Html(f"<script>{script}</script>"),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"
