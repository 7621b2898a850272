"""Writes the owner's page: the status in words as HTML without a script, every value escaped."""

import hashlib
from base64 import b64encode
from collections.abc import Iterator, Sequence

from terafleet.agent.history import AttemptRow
from terafleet.agent.status import AgentStatus
from terafleet.agent.status_words import (
    AttemptWords,
    Fact,
    Topic,
    attempt_words,
    headline,
    topics,
    why_not,
)
from terafleet.core.guard_effects import GuardState

REFRESH_S = 10
COLUMNS = ("ended", "work", "model", "length", "energy", "outcome")

STYLE = """\
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6470;--paper:#f4f5f7;--card:#fff;\
--line:#e1e4e8;--good:#1a7f4b;--rest:#9a6700;--alarm:#b42318}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#9aa4b0;--paper:#14171a;\
--card:#1d2125;--line:#30363d;--good:#4cc38a;--rest:#e2b03f;--alarm:#ff8a7a}}
*{box-sizing:border-box}
body{margin:0;padding:1rem;background:var(--paper);color:var(--ink);\
font:16px/1.45 system-ui,sans-serif}
main{max-width:46rem;margin:0 auto}
header,section{background:var(--card);border:1px solid var(--line);border-radius:.75rem;\
padding:1rem 1.2rem;margin:0 0 1rem}
header{border-left:.4rem solid var(--rest)}
header.permitting{border-left-color:var(--good)}
h1{font-size:1.35rem;margin:0;overflow-wrap:anywhere}
h2{font-size:.85rem;margin:0 0 .6rem;color:var(--soft);font-weight:600;letter-spacing:.04em;\
text-transform:uppercase}
ul{margin:.6rem 0 0;padding:0 0 0 1.1rem}
li{overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(7.5rem,max-content) 1fr;gap:.35rem 1rem;margin:0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
progress{display:block;width:100%;height:.45rem;margin:.2rem 0 .3rem;accent-color:var(--good)}
.alarm{color:var(--alarm);font-weight:600}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;white-space:nowrap;vertical-align:top}
td:last-child{white-space:normal;min-width:10rem}
th{color:var(--soft);font-weight:600}
tr+tr td{border-top:1px solid var(--line)}
@media(max-width:40rem){table,tbody,tr{display:block}tr:first-child{display:none}\
td,td:last-child{display:inline;padding:0;white-space:normal}tr{padding:.4rem 0}\
tr+tr td{border:0}tr+tr+tr{border-top:1px solid var(--line)}\
td:not(:last-child)::after{content:" \\b7  ";color:var(--soft)}}
footer{color:var(--soft);font-size:.85rem;padding:0 .3rem}
a{color:inherit}
"""
_DIGEST = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy under which the page is shown: its own style, and nothing else."""

_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})


def page(status: AgentStatus, attempts: Sequence[AttemptRow], now_ms: int) -> str:
    """The whole page, as UTF-8 text."""
    return "".join(_pieces(status, attempts, now_ms))


def escaped(text: str) -> str:
    """A text as HTML shows it, without what is no character to be shown."""
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    return shown.translate(_ESCAPES)


def _pieces(status: AgentStatus, attempts: Sequence[AttemptRow], now_ms: int) -> Iterator[str]:
    title = headline(status, is_running=True)
    yield (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="refresh" content="{REFRESH_S}">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style></head>\n<body><main>\n"
    )
    yield from _head(status, title, now_ms)
    for topic in topics(status, now_ms)[1:]:
        yield _section(topic)
    yield _attempts([attempt_words(row, status) for row in attempts])
    yield (
        '<footer>The same for programs: <a href="/status.json">status</a>, '
        '<a href="/attempts.json">attempts</a>. This page is seen on this car only, '
        f"and renews itself every {REFRESH_S} seconds.</footer>\n</main></body></html>\n"
    )


def _head(status: AgentStatus, title: str, now_ms: int) -> Iterator[str]:
    is_permitting = status.state is GuardState.PERMITTING
    yield f'<header class="{"permitting" if is_permitting else "resting"}">'
    yield f"<h1>{escaped(title)}</h1>"
    reasons = why_not(status, now_ms)
    if reasons:
        yield "<ul>" + "".join(f"<li>{escaped(text)}</li>" for text in reasons) + "</ul>"
    for fault in status.policy_faults:
        yield f'<p class="alarm">The policy has a fault: {escaped(fault)}</p>'
    yield "</header>\n"


def _section(topic: Topic) -> str:
    facts = "".join(map(_fact, topic.facts))
    return f"<section><h2>{escaped(topic.name)}</h2><dl>{facts}</dl></section>\n"


def _fact(fact: Fact) -> str:
    bar = ""
    if fact.share is not None:
        bar = f'<progress value="{fact.share:.3f}" max="1"></progress>'
    kind = ' class="alarm"' if fact.is_alarm else ""
    return f"<dt>{escaped(fact.name)}</dt><dd{kind}>{escaped(fact.text)}{bar}</dd>"


def _attempts(rows: Sequence[AttemptWords]) -> str:
    begin = "<section><h2>attempts of the last day</h2>"
    if not rows:
        return f"{begin}<p>There were none.</p></section>\n"
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><tr>{head}</tr>{lines}</table>"
    return f'{begin}<div class="wide">{table}</div></section>\n'
