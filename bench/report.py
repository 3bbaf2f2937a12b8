# SPDX-License-Identifier: MIT
"""report.py: results as a table in Markdown and as a chart in SVG."""
from html import escape

from rows import ROWS
from stats import ratios, summary

LEVELS = {1: "The engine alone, in one process", 2: "FUSE, on this host", 3: "ublk, in a guest kernel"}


def known(results):
    return [row for row in ROWS if row.name in results]


def number(value):
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    if value >= 1e4:
        return f"{value / 1e3:.0f} k"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def ratio_text(s):
    return f"**{s['median']:.2f}** [{s['low']:.2f}, {s['high']:.2f}]"


def values(result, contender, metric):
    return [m.get(metric) for m in result["measured"].get(contender, [])]


def goals_of(row, result):
    """(A, B, what is asked, summary of the ratios, the same of CPU times: theirs to ours; None: not known)"""
    out = []
    for ours, theirs, least in row.goals:
        got = ratios(values(result, ours, row.metric), values(result, theirs, row.metric),
                     row.metric != "rate")
        if got:
            used = ratios(values(result, ours, "cpu_us"), values(result, theirs, "cpu_us"), True)
            out.append((ours, theirs, least, summary(got), summary(used) if used else None))
    return out


def asked_text(least, got):
    if least is None:
        return ""
    return f"{least} {'yes' if got >= least else '**no**'}"


def row_lines(row, result):
    if "absent" in result:
        return [f"| {row.what} | *left out: {result['absent']}* | | |"]
    figures = []
    for name in result["measured"]:
        got = [v for v in values(result, name, row.metric) if v]
        if got:
            s = summary(got)
            figures.append(f"{name} {number(s['median'])} ({number(s['low'])} to {number(s['high'])})")
    lines = []
    asked = goals_of(row, result) or [None]
    for i, goal in enumerate(asked):
        what = f"{row.what}; {row.medium}, {result['rounds']} rounds, load {result['load']:.1f}" if i == 0 else ""
        text = "<br>".join(figures) if i == 0 else ""
        if goal:
            ours, theirs, least, s, used = goal
            lines.append(f"| {what} | {text} | {ours} / {theirs}: {ratio_text(s)}"
                         + (f"; by CPU time {used['median']:.2f}" if used else "")
                         + f" | {asked_text(least, s['median'])} |")
        else:
            lines.append(f"| {what} | {text} | | |")
    return lines


def percentile_lines(results):
    lines = ["| workload | contender | median | 99 % | 99.9 % | CPU | enters |", "|---|---|---|---|---|---|---|"]
    for row in known(results):
        for name, got in results[row.name].get("measured", {}).items():
            cells = []
            for key in ("median_us", "p99_us", "p999_us", "cpu_us", "enters"):
                have = [m[key] for m in got if key in m]
                cells.append(f"{summary(have)['median']:.2f}" if have else "")
            if any(cells):
                lines.append(f"| {row.name} | {name} | " + " | ".join(cells) + " |")
    return lines


# Of a process that has opened an image and made no request: its map cache is empty, and its L1 table small.
ATTACH_MS, ATTACH_MIB = 50, 32


def attach_figures(attach):
    for kind, got in attach.items():
        opened, resident = summary([g["open_ms"] for g in got]), summary([g["resident_mib"] for g in got])
        yield kind, opened, resident["median"], opened["median"] < ATTACH_MS and resident["median"] < ATTACH_MIB


def attach_lines(attach):
    lines = ["| image | opened in (ms) | resident before the first request (MiB) | asked: less than "
             f"{ATTACH_MS} ms, {ATTACH_MIB} MiB |", "|---|---|---|---|"]
    for kind, opened, resident, good in attach_figures(attach):
        lines.append(f"| {kind} | {opened['median']:.2f} ({opened['low']:.2f} to {opened['high']:.2f}) "
                     f"| {resident:.1f} | {'yes' if good else '**no**'} |")
    return lines


def counted_text(value):
    return value if isinstance(value, str) else f"{value:.0f}" if value >= 50 else f"{value:.3g}"


def counted_lines(counted):
    lines = ["| | counted | asked: at most |", "|---|---|---|"]
    for what, value, most in counted:
        asked = "" if most is None else f"{most} {'yes' if value <= most else '**no**'}"
        lines.append(f"| {what} | {counted_text(value)} | {asked} |")
    return lines


def markdown(data):
    results, out = data["rows"], []
    for level, title in LEVELS.items():
        rows = [row for row in known(results) if row.level == level]
        if not rows:
            continue
        out += [f"### {level}. {title}", "", f"*{data['machines'][str(level)]}*", "",
                "| workload | requests in a second: median (interval) | ratio: median [interval] | asked, reached |",
                "|---|---|---|---|"]
        for row in rows:
            out += row_lines(row, results[row.name])
        out.append("")
    if data.get("counted"):
        out += ["### Counted", ""] + counted_lines(data["counted"]) + [""]
    if data.get("attach"):
        out += ["### Attaching", ""] + attach_lines(data["attach"]) + [""]
    out += ["### Latencies in microseconds, CPU time of the server in microseconds, and calls of io_uring_enter, "
            "for each request", ""]
    return "\n".join(out + percentile_lines(results)) + "\n"


def terminal(data):
    """The ratios alone, in columns."""
    lines = []
    for row in known(data["rows"]):
        result = data["rows"][row.name]
        if "absent" in result:
            lines.append(f"{row.name:24} left out: {result['absent']}")
            continue
        rates = [f"{name} {number(summary([v for v in values(result, name, row.metric) if v])['median'])}"
                 for name in result["measured"] if any(values(result, name, row.metric))]
        lines.append(f"{row.name:24} {', '.join(rates)}")
        for ours, theirs, least, s, used in goals_of(row, result):
            mark = "   " if least is None else "ok " if s["median"] >= least else "LOW"
            lines.append(f"{'':24} {mark} {ours} / {theirs}: {s['median']:.2f} [{s['low']:.2f}, {s['high']:.2f}]"
                         + ("" if least is None else f", asked {least}")
                         + (f"; by CPU time {used['median']:.2f}" if used else ""))
    for what, value, most in data.get("counted", []):
        mark = "   " if most is None else "ok " if value <= most else "LOW"
        lines.append(f"{'counted':24} {mark} {what}: {counted_text(value)}"
                     + ("" if most is None else f", asked at most {most}"))
    for kind, opened, resident, good in attach_figures(data.get("attach") or {}):
        lines.append(f"{'attach':24} {'ok ' if good else 'LOW'} {kind}: opened in {opened['median']:.1f} ms "
                     f"[{opened['low']:.1f}, {opened['high']:.1f}], {resident:.1f} MiB resident, "
                     f"asked less than {ATTACH_MS} ms, {ATTACH_MIB} MiB")
    return "\n".join(lines) + "\n"


# ---- the chart: for each row a group of bars, relative to the group's first contender ----

BAR, GAP, LEFT, WIDTH, RIGHT = 14, 10, 330, 520, 90
COLOURS = ("#1b6ca8", "#7aa6c2", "#c0c8cf", "#d08c60", "#e3b89b", "#a0a0a0", "#808080", "#606060")


def chart(data):
    y, parts = 40, []
    for row in known(data["rows"]):
        result = data["rows"][row.name]
        sums = {name: summary(got) for name in result.get("measured", {})
                if (got := [v for v in values(result, name, row.metric) if v])}
        if not sums:
            continue
        top = max(s["high"] for s in sums.values())
        unit = "µs" if row.metric != "rate" else "/s"
        parts.append(f'<text x="8" y="{y + 11}" font-weight="bold">{row.level}: {escape(row.what)}</text>')
        y += BAR + 4
        for i, (name, s) in enumerate(sums.items()):
            length = WIDTH * s["median"] / top
            low, high = LEFT + WIDTH * s["low"] / top, LEFT + WIDTH * s["high"] / top
            middle = y + BAR / 2
            parts.append(f'<text x="{LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(name)}</text>'
                         f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 2}" '
                         f'fill="{COLOURS[i % len(COLOURS)]}"/>'
                         f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#000" stroke-width="1"/>'
                         f'<text x="{LEFT + WIDTH + 8}" y="{y + 11}">{number(s["median"])}{unit}</text>')
            y += BAR
        y += GAP
    total = LEFT + WIDTH + RIGHT
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{y + 10}" '
            f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="#fff"/>\n'
            f'<text x="8" y="20" font-size="14">ublk-qcow2: median over the rounds; lines: its interval</text>\n'
            + "\n".join(parts) + "\n</svg>\n")
