"""How ``asr check`` shows what it found."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr.cli.checked import CheckReport, DomainReport
from asr.cli.output import counted

_SHOWN = 1200
"""Characters of an example; the middle of a longer piece is left out."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but for tabs and line ends."""

_NAMED = 3
"""Sources named in one line."""


def show(report: CheckReport, console: Console) -> None:
    """Print counts, lengths, what deserves attention, and every domain's first example."""
    console.print(_counts(report))
    if report.base is None:
        console.print(
            "\nleft out without a base: tokens, what is cut, and the first example as it is "
            "rendered; add --base BASE (smollm2-135m is fetched once, about 100 MB)",
            soft_wrap=True,
        )
    else:
        console.print()
        console.print(_lengths(report))
        console.print(
            Text(f"tokens by '{report.base}'; only its tokenizer was loaded", style="dim"),
            soft_wrap=True,
        )
    lines = [line for domain in report.domains for line in _remarks(domain, report)]
    for pair, shared in report.shared.items():
        lines.append(
            f"warning: {pair} share {counted(len(shared), 'prompt')} ({_pairs(shared)}): the "
            "router cannot tell these apart"
        )
    if lines:
        console.print()
    for line in lines:
        style = "yellow" if line.startswith("warning:") else ""
        console.print(Text(line, style=style), soft_wrap=True)
    for domain in report.domains:
        _show_first(domain, console)


def _table(columns: Sequence[tuple[str, bool]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title, numeric in columns:
        table.add_column(title, justify="right" if numeric else "left", no_wrap=not numeric)
    return table


def _counts(report: CheckReport) -> Table:
    config = any(domain.scorer for domain in report.domains)
    numbers = ["examples", "prompts"] + (["train", "dev"] if config else [])
    tested = any(domain.test for domain in report.domains)
    numbers += ["test"] if tested else []
    columns = [("domain" if config else "data", False), ("format", False)]
    table = _table([*columns, *((name, True) for name in numbers), *([("scorer", False)] * config)])
    for domain in report.domains:
        cells = [str(domain.examples), str(domain.prompts)]
        cells += [str(domain.train), str(domain.dev)] if config else []
        cells += [str(domain.test)] if tested else []
        cells += [domain.scorer or ""] if config else []
        table.add_row(domain.name, domain.format or "", *cells)
    return table


def _lengths(report: CheckReport) -> Table:
    names = ("shortest", "median", "95%", "longest", "all", "learned", "limit", "cut", "dropped")
    table = _table([("tokens", False), *((name, True) for name in names)])
    for domain in report.domains:
        found = domain.lengths
        if found is None:
            continue
        values = (found.minimum, found.median, found.percentile95, found.maximum, found.total)
        cut = len(found.shortened) + len(found.split)
        rest = (found.supervised, found.limit, cut, len(found.dropped))
        table.add_row(domain.name, *(f"{value:,}" for value in (*values, *rest)))
    return table


def _remarks(domain: DomainReport, report: CheckReport) -> list[str]:
    name = domain.name
    lines: list[str] = []
    if domain.meta:
        some = (
            key if count == domain.examples else f"{key} ({count} of {domain.examples})"
            for key, count in list(domain.meta.items())[:8]
        )
        lines.append(f"{name}: meta for scorers: {', '.join(some)}")
    lines += _common(domain)
    found = domain.lengths
    if found is not None:
        if report.context_length is not None and found.limit > report.context_length:
            lines.append(
                f"warning: {name}: max_length {found.limit} is longer than the base's context, "
                f"{report.context_length}; asr train will refuse it"
            )
        if found.shortened:
            lines.append(
                f"warning: {name}: {counted(len(found.shortened), 'example')} longer than "
                f"max_length {found.limit}, shown without the middle of a user message "
                f"({_some(found.shortened)})"
            )
        if found.split:
            lines.append(
                f"{name}: {counted(len(found.split), 'text')} longer than max_length "
                f"{found.limit}, continued in further rows ({_some(found.split)})"
            )
        if found.dropped:
            every = "" if found.supervised else ": none is left, so asr train will refuse it"
            lines.append(
                f"warning: {name}: {counted(len(found.dropped), 'example')} cannot fit into "
                f"max_length {found.limit} and would be left out ({_some(found.dropped)}){every}"
            )
    repeated, unlike = domain.duplicates.repeated, domain.duplicates.contradictory
    if repeated:
        lines.append(
            f"warning: {name}: {counted(len(repeated), 'prompt')} more than once with the "
            f"same answer ({_groups(repeated)})"
        )
    if unlike:
        lines.append(
            f"warning: {name}: {counted(len(unlike), 'prompt')} with different answers "
            f"({_groups(unlike)})"
        )
    for split, shared in (("dev", domain.shared_with_dev), ("test", domain.shared_with_test)):
        if shared:
            lines.append(
                f"warning: {name}: {counted(len(shared), 'prompt')} of {split} also in the "
                f"training data, but for case and white space ({_pairs(shared)}): scores there say "
                "nothing"
            )
    return lines


def _common(domain: DomainReport) -> list[str]:
    """Say what all prompts share, and how one looks without it: how people are likely to write."""
    parts = {
        "begin with": domain.common.prefix,
        "end with": domain.common.suffix,
        "have the system prompt": domain.common.system,
    }
    shared = [f"{how} {_quote(part)}" for how, part in parts.items() if part]
    if domain.prompts < 2:
        return []
    if not shared:
        return [
            f"{domain.name}: prompts share no instruction; the bare view equals the templated one"
        ]
    return [
        f"{domain.name}: prompts {', '.join(shared)}",
        f"{domain.name}: the first one bare: {_quote(domain.bare)}",
    ]


def _show_first(domain: DomainReport, console: Console) -> None:
    if not domain.first:
        return
    coloured = console.is_terminal and not console.no_color and console.color_system is not None
    how = "coloured" if coloured else "between [[ and ]]"
    title = f"\n{domain.name}, first example ({domain.source}); what is learned is {how}:"
    console.print(Text(title, style="bold"), soft_wrap=True)
    text = Text()
    for piece, learned in domain.first:
        shown = _visible(_middle_out(piece))
        if coloured:
            text.append(shown, style="bold green" if learned else "dim")
        else:
            text.append(f"[[{shown}]]" if learned else shown)
    console.print(text, soft_wrap=True)


def _middle_out(text: str, limit: int = _SHOWN) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"


def _visible(text: str) -> str:
    """Write control characters as escapes: a terminal would obey them."""
    return _CONTROL.sub(lambda found: repr(found.group())[1:-1], text)


def _quote(text: str) -> str:
    return repr(_middle_out(text, 160))


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _groups(groups: Sequence[Sequence[str]]) -> str:
    return _some([" = ".join(_short(group)) for group in groups])


def _short(group: Sequence[str]) -> list[str]:
    return [*group[:_NAMED], "..."] if len(group) > _NAMED else list(group)


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return _some([f"{second} = {first}" for first, second in pairs])
