"""The tear sheet: one HTML file of a backtest, or of two beside each other, that needs nothing else and no network.

Numbers come from trading/performance.py and trading/comparison.py, figures from trading/tearsheet_figures.py, the page
from tearsheet.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from core.halting import HaltingRule
from trading import tearsheet_figures as figures
from trading.backtest import BacktestResult
from trading.comparison import Comparison
from trading.hierarchy import hrm_metrics
from trading.performance import record, summary

PAGE = Path(__file__).with_name("tearsheet.html")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Year")
VERDICTS = {
    "promote": "Promote the challenger",
    "keep": "Keep the champion",
    "undecided": "Undecided: the champion stays",
}


@dataclass(frozen=True)
class Fact:
    """A number with its name and what belongs to it, for a card, a row of a table, or a terminal."""

    label: str
    value: str
    detail: str = ""
    tone: str = ""  # gain or loss


@dataclass(frozen=True)
class Section:
    """A part of the page: a plot (plotly's JSON) or a table (HTML)."""

    title: str
    caption: str
    plot: str | None = None
    html: str = ""
    wide: bool = False
    zoom: bool = False  # buttons that choose the days shown


def tearsheet(name: str, result: BacktestResult, rule: HaltingRule | None, *, note: str = "") -> str:
    """The page of one backtest of the model `name`; `note` goes under its title."""
    told = summary(result, rule)
    days = f"{told['start_date']} to {told['end_date']}, {told['sessions']:,} sessions"
    lines = (f"{result.market.name}, {days}", f"{told['initial_capital']:,.0f} rupees, not compounded", note)
    page = Page("Backtest", name, ". ".join(line[:1].upper() + line[1:] for line in lines if line) + ".")
    return page.html(facts(told)[:6], _sections(name, result, rule, told))


def comparison_page(
    compared: Comparison, champion: tuple[str, BacktestResult], challenger: tuple[str, BacktestResult]
) -> str:
    """The page of two backtests over the same sessions, and the verdict on them."""
    (old, before), (new, after) = champion, challenger
    gained = 1e4 * (after.returns - before.returns)
    records = [record(before, old), record(after, new)]
    subtitle = f"{old} decides, {new} wants to: {compared.sessions:,} sessions of {before.market.name}."
    sections = [
        Section(
            "Why", "The verdict's reasons, in the order they were asked.", html=_listed(compared.reasons), wide=True
        ),
        Section(
            "Profit and drawdown",
            "After charges, percent of the capital.",
            figures.equity({old: before, new: after}),
            wide=True,
        ),
        Section(
            "The difference, session by session",
            "What the challenger earned beside the champion, summed.",
            figures.difference(before.days, gained),
        ),
        Section(
            "Distribution of the differences",
            "The dashed line is their mean.",
            figures.distribution({"challenger - champion": gained}, "bps of the capital in a session"),
        ),
        Section("If charges were different", "The same orders, other prices for them.", figures.cost_sweep(records)),
        Section(
            "Numbers",
            "95 % intervals: stationary bootstrap.",
            html=_metrics_table(comparison_facts(compared)),
            wide=True,
        ),
    ]
    page = Page("Comparison", VERDICTS[compared.verdict], subtitle)
    return page.html(comparison_facts(compared)[:4], sections)


def facts(told: Mapping[str, Any]) -> list[Fact]:
    """A backtest's summary for people, the most important first."""
    ratios, found, hrm = told["performance"], told["intervals"], told["hrm_metrics"]
    earned = told["total_return"]
    return [
        Fact("Return", _signed(earned), f"{_signed(told['gross_return'])} before charges", _tone(earned)),
        Fact("Sharpe, annual", _number(ratios["sharpe"]), _interval(found["sharpe"]), _tone(ratios["sharpe"])),
        Fact("Deepest drawdown", f"{told['max_drawdown']:.1%}", _ruin(told["ruined_on"])),
        Fact("Mean session", _bps(found["mean_bps"]), _interval(found["mean_bps"])),
        Fact(
            "Breaks even at", _cost(told["break_even_cost_bps"]), f"of the value traded; paid {_cost(told['cost_bps'])}"
        ),
        Fact("Mean depth", f"{hrm['avg_reasoning_depth']:.2f}", "segments a decision"),
        Fact("Buy and hold", _signed(told["buy_and_hold_return"]), "without charges, overnight too"),
        Fact("Annual return", _signed(ratios["annual_return"])),
        Fact("Annual volatility", _share(ratios["annual_volatility"])),
        Fact("Sortino", _number(ratios["sortino"])),
        Fact("Calmar", _number(ratios["calmar"])),
        Fact("Tail ratio", _number(ratios["tail_ratio"])),
        Fact("Winning sessions", _share(told["winning_sessions"])),
        Fact("Time in the market", _share(told["time_in_market"]), "of the decisions"),
        Fact("Orders", f"{told['trades']:,}", f"in {told['decisions']:,} decisions"),
        Fact("Charges", f"{told['costs']:,.0f}", "rupees, slippage included"),
        *_reasoning(hrm),
    ]


def _reasoning(hrm: Mapping[str, Any]) -> list[Fact]:
    """Nothing for a model of one pass, which cannot stop early or change its mind."""
    if set(hrm["halting_reasons"]) == {"single_pass"}:
        return []
    return [
        Fact("Computation efficiency", _share(hrm["computation_efficiency"]), "of the depth allowed, not needed"),
        Fact("Convergence", _share(hrm["hierarchical_convergence"]), "stopped by themselves"),
        Fact("Stability", _share(hrm["hrm_convergence_stability"]), "action unchanged by the last segment"),
    ]


def comparison_facts(compared: Comparison) -> list[Fact]:
    """A comparison for people, the most important first."""
    told = compared.to_dict()
    mean, sharpe = told["difference_bps"], told["sharpe_difference"]
    needed = compared.sessions_needed
    rows = [
        Fact("Advantage per session", _bps(mean), _interval(mean), _tone(mean["value"])),
        Fact("Sharpe, challenger less champion", _number(sharpe["value"]), _interval(sharpe), _tone(sharpe["value"])),
        Fact("Probably worse", f"{compared.worse_probability:.1%}", "share of the resampled means below zero"),
        Fact("Sessions to decide", f"{needed:,}" if needed else "none known", f"{compared.sessions:,} seen"),
        Fact("Sharpe ratio is no luck", f"{compared.deflated_sharpe:.1%}", _trials(compared)),
    ]
    for role, earned in (("Champion", compared.champion), ("Challenger", compared.challenger)):
        per_session = f"{earned['return_bps_per_session']:+.2f} bps"
        rows.append(Fact(f"{role} per session", per_session, f"Sharpe {earned['sharpe']:.2f}"))
    return rows


@dataclass(frozen=True)
class Page:
    """A page of cards and sections that needs nothing else and no network."""

    kind: str
    title: str
    subtitle: str

    def html(self, cards: Sequence[Fact], sections: Sequence[Section]) -> str:
        plots = {f"plot{place}": section.plot for place, section in enumerate(sections) if section.plot}
        # A page's script ends at the first "</", wherever it stands.
        data = "{" + ",".join(f'"{name}":{plot}' for name, plot in plots.items()) + "}"
        return Template(PAGE.read_text(encoding="utf-8")).substitute(
            kind=escape(self.kind),
            title=escape(self.title),
            subtitle=escape(self.subtitle),
            cards="\n".join(_card(fact) for fact in cards),
            sections="\n".join(_figure(f"plot{place}", section) for place, section in enumerate(sections)),
            figures=data.replace("<", "\\u003c"),
            plotly=get_plotlyjs(),
        )


def _sections(name: str, result: BacktestResult, rule: HaltingRule | None, told: Mapping[str, Any]) -> list[Section]:
    sections = [
        Section(
            "Profit and drawdown",
            "After charges, before them, and of the market itself.",
            figures.equity({name: result}),
            wide=True,
        )
    ]
    if len(result.market.begins) < 2:  # the prices of several symbols do not share an axis
        sections.append(
            Section(
                "Orders on the price",
                "Green was held long, red short. Drag to zoom; single orders show within a month.",
                figures.trades(result),
                wide=True,
                zoom=True,
            )
        )
    sections += [
        Section("Months", "Percent of the capital, after charges.", html=_months(figures.monthly(result)), wide=True),
        Section(
            "Sessions",
            "What a session earned; the dashed line is the mean.",
            figures.distribution({name: 1e4 * result.returns}, "bps of the capital"),
        ),
        Section(
            "If charges were different",
            "The same orders, other prices for them.",
            figures.cost_sweep([record(result, name)]),
        ),
    ]
    if rule is not None:
        metrics = hrm_metrics(result.journal, result.market.complexity[result.journal.at], rule)
        sections += [
            Section("Depth", "Does it think longer where the market is complex?", figures.depth(result)),
            Section("Why it stopped thinking", "Decisions by halting reason.", figures.halting(metrics)),
        ]
    table = _metrics_table(facts(told))
    return [*sections, Section("Numbers", "95 % intervals: stationary bootstrap over sessions.", html=table, wide=True)]


def _card(fact: Fact) -> str:
    value = f'<b class="{fact.tone}">{escape(fact.value)}</b>'
    return f'<div class="card"><small>{escape(fact.label)}</small>{value}<small>{escape(fact.detail)}</small></div>'


def _figure(name: str, section: Section) -> str:
    inside = section.html
    if section.plot is not None:
        label = escape(f"{section.title}. {section.caption}", quote=True)
        inside = f'<div class="plot" id="{name}" role="img" aria-label="{label}"></div>'
    buttons = ""
    if section.zoom:
        spans = (("5", "week"), ("21", "month"), ("63", "quarter"), ("", "all"))
        choices = "".join(
            f'<button data-plot="{name}" data-sessions="{shown}">{text}</button>' for shown, text in spans
        )
        buttons = f'<div class="buttons">{choices}</div>'
    return (
        f"<figure{' class=wide' if section.wide else ''}><h2>{escape(section.title)}</h2>"
        f"<figcaption>{escape(section.caption)}</figcaption>{buttons}{inside}</figure>"
    )


def _metrics_table(rows: Sequence[Fact]) -> str:
    lines = "".join(
        f'<tr><td>{escape(row.label)}</td><td class="{row.tone}">{escape(row.value)}</td>'
        f"<td>{escape(row.detail)}</td></tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="metrics"><tbody>{lines}</tbody></table></div>'


def _months(table: Mapping[int, Sequence[float | None]]) -> str:
    largest = max((abs(value) for row in table.values() for value in row[:12] if value is not None), default=0.0) or 1.0
    head = "".join(f"<th>{month}</th>" for month in MONTHS)
    body = ""
    for year, row in table.items():
        cells = "".join(_heat(value, largest) for value in row[:12])
        total = row[12] or 0.0
        body += f'<tr><td>{year}</td>{cells}<td class="{_tone(total)}"><b>{total:+.1f}</b></td></tr>'
    return f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _heat(value: float | None, largest: float) -> str:
    if value is None:
        return "<td></td>"
    tone, share = "gain" if value >= 0 else "loss", abs(value) / largest
    return f'<td class="heat" style="--tone: var(--{tone}); --share: {share:.2f}">{value:+.1f}</td>'


def _listed(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _signed(ratio: float | None) -> str:
    return "none" if ratio is None else f"{ratio:+.1%}"


def _share(ratio: float | None) -> str:
    return "none" if ratio is None else f"{ratio:.1%}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _bps(interval: Mapping[str, float] | None) -> str:
    return "none" if interval is None else f"{interval['value']:+.2f} bps"


def _cost(bps: float | None) -> str:
    return "none" if bps is None else f"{bps:.2f} bps"


def _interval(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "too few sessions for an interval"
    return f"95 % interval {interval['ci95_low']:.2f} to {interval['ci95_high']:.2f}"


def _trials(compared: Comparison) -> str:
    least = "" if compared.trials_complete else "at least "
    return f"of {least}{compared.trials} trial{'' if compared.trials == 1 else 's'}"


def _ruin(day: str | None) -> str:
    return "of the highest equity" if day is None else f"ruined on {day}"


def _tone(value: float | None) -> str:
    return "" if not value else ("gain" if value > 0 else "loss")
