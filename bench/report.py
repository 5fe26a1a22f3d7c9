"""Tables and plots from result files, and comparison of two result files.

``python -m bench.report RESULT.json``: a Markdown table and PNG plots beside the result file.
``python -m bench.report NEW.json --compare OLD.json [--fail-if-regression PERCENT]``: changes

Result files are those of ``pytest bench/ --benchmark-json=RESULT.json``; nothing else is read.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Providers of this project; all others are peers.
OURS = ("auto", "reference", "cpp", "triton", "cuda", "package", "trainer")
_KEYS = ("op", "shape", "kind", "dtype", "mode", "timing")
_OP_ORDER = ("channelwise_linear", "masked_l2_loss")

Record = dict[str, Any]
Key = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Results:
    """Content of a result file: the machine, and rows as lists of provider records."""

    machine: Mapping[str, Any]
    when: str
    rows: Mapping[Key, list[Record]]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a result file; raises ValueError for a file not written by ``pytest bench/``."""
        try:
            content = json.loads(path.read_text())
            machine = content["machine_info"]["bench"]
            records = [entry["extra_info"] for entry in content["benchmarks"]]
            rows: dict[Key, list[Record]] = {}
            for record in records:
                rows.setdefault(tuple(record[key] for key in _KEYS), []).append(record)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} is not a result of pytest bench/ --benchmark-json ({error!r})"
            ) from error
        for providers in rows.values():
            providers.sort(key=lambda record: record["p50"])
        return cls(machine, content.get("datetime", ""), rows)


def is_ours(provider: str) -> bool:
    return provider.split()[0] in OURS


def title(key: Key) -> str:
    op, shape, kind, dtype, mode, timing = key
    return " ".join(filter(None, (op, shape, kind, dtype, mode, f"[{timing}]")))


# --- table ------------------------------------------------------------------------------------


def markdown(results: Results) -> str:
    """The whole result as Markdown."""
    lines = ["# Benchmark results", "", *_machine_lines(results), ""]
    lines += _auto_lines(results)
    lines += _loading_lines(results)
    for key, providers in results.rows.items():
        lines += [f"## {title(key)}", "", *_table(results, key, providers), ""]
        shares = {r["provider"]: r["time_shares"] for r in providers if "time_shares" in r}
        for provider, groups in shares.items():
            ranked = sorted(groups.items(), key=lambda item: -item[1])
            parts = ", ".join(f"{name} {share:.1%}" for name, share in ranked)
            lines += [f"Time of {provider}: {parts}.", ""]
    return "\n".join(lines)


def _machine_lines(results: Results) -> list[str]:
    machine = results.machine
    facts = {
        "measured": results.when,
        "CPU": f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['threads']} threads",
        "load at the start": f"{machine['load_average']:.2f}",
        "GPU": machine["gpu"] or "none: GPU rows not measured",
        "torch": machine["torch"],
        "Triton": machine["triton"] or "none",
        "CUDA": machine["cuda"] or "none",
        "Python": machine["python"],
        "git": machine["git"] or "unknown",
    }
    for name, speed in machine.get("copy_gb_per_s", {}).items():
        facts[f"copy bandwidth, {name}"] = f"{speed:.1f} GB/s"
    for name, speed in machine.get("matmul_gflop_per_s", {}).items():
        facts[f"float32 product, {name}"] = f"{speed:.0f} GFLOP/s"
    for name, state in machine["implementations"].items():
        facts[f"implementation {name}"] = state
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())]


def _auto_lines(results: Results) -> list[str]:
    """Rows where "auto" is more than 5 % slower than the best provider."""
    slower = []
    for key, providers in results.rows.items():
        own = next((r for r in providers if r["provider"] == "auto"), None)
        # Neither the implementation chosen by "auto" nor "auto area", which is given more data, is
        # an alternative to "auto".
        others = {
            name: ratio
            for name, ratio in (own["speedup"] if own else {}).items()
            if name != own.get("chosen") and not name.startswith("auto")
        }
        if not others:
            continue
        best, ratio = min(others.items(), key=lambda item: item[1])
        if ratio < 0.95:
            slower.append((ratio, f"| {title(key)} | {own.get('chosen')} | {best} | {ratio:.2f} |"))
    if not slower:
        return ['No row where "auto" is more than 5 % slower than the best provider.', ""]
    return [
        '## Rows where "auto" is more than 5 % slower than the best provider',
        "",
        "| row | auto chose | best | auto's speed-up over it |",
        "| --- | --- | --- | ---: |",
        *(line for _, line in sorted(slower)),
        "",
    ]


def _loading_lines(results: Results) -> list[str]:
    """Speed of loading relative to training, for each preset that has both."""
    steps: dict[str, Record] = {}
    loaded: dict[str, dict[str, float]] = {}
    for (op, _, kind, dtype, mode, _), providers in results.rows.items():
        own = {r["provider"]: r for r in providers}
        if op == "training_step" and dtype == "float32" and "trainer" in own:
            steps[kind] = own["trainer"]
        elif op == "data_loading" and "package" in own:
            loaded.setdefault(kind, {})[mode] = own["package"]["items_per_s"]
    lines = []
    for kind in sorted(steps.keys() & loaded.keys()):
        rate, modes = steps[kind]["items_per_s"], loaded[kind]
        cells = [f"{modes[mode]:.0f}" if mode in modes else "-" for mode in ("decode", "cached")]
        slowest = min(modes.values())
        busy = f"{rate / slowest:.1%}" if slowest else "-"
        lines.append(
            f"| {kind} | {steps[kind]['device']} | {rate:.3g} | {' | '.join(cells)} | {busy} |"
        )
    if not lines:
        return []
    return [
        "## Loading against training",
        "",
        "Images per second, loaded by one process; the last column is the share of its time that "
        "training needs: 300 % needs three workers.",
        "",
        "| preset | step on | step | decoded | from cache | loader busy |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *lines,
        "",
    ]


def _table(results: Results, key: Key, providers: Sequence[Record]) -> list[str]:
    bandwidth = results.machine.get("copy_gb_per_s", {})
    traffic = any(r["bytes"] for r in providers)
    columns = ["provider", "20 %", "50 %", "80 %"]
    columns += ["MB counted", "GB/s", "of copy"] if traffic else ["items/s"]
    columns += ["error", "peak memory"]
    names = [r["provider"] for r in providers]
    columns += [f"vs {name}" for name in names]
    lines = [
        "| " + " | ".join(columns) + " |",
        "| --- |" + " ---: |" * (len(columns) - 1),
    ]
    for record in providers:
        name = record["provider"]
        chosen = f" ({record['chosen']})" if record.get("chosen") else ""
        cells = [name + chosen, *(_seconds(record[q]) for q in ("p20", "p50", "p80"))]
        if traffic:
            copy = bandwidth.get(record["device"])
            share = f"{record['gb_per_s'] / copy:.0%}" if copy else "-"
            cells += [f"{record['bytes'] / 1e6:.4g}", f"{record['gb_per_s']:.3g}", share]
        else:
            cells.append(f"{record['items_per_s']:.4g}")
        error = record["error"]
        cells += ["-" if error is None else f"{error:.1e}", _memory(record["peak_memory"])]
        speedups = record["speedup"]
        cells += ["" if n == name else _ratio(speedups.get(n)) for n in names]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def _memory(value: float) -> str:
    return f"{value / 2**20:.3g} MiB"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# --- plots ------------------------------------------------------------------------------------


def plots(results: Results, folder: Path) -> list[Path]:
    """PNG files of a result: roofline of each op, speed-up bars, scaling."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(
            "plots need matplotlib: pip install -e '.[bench]', or pass --no-plots"
        ) from error
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    timings = sorted({key[5] for key in results.rows})
    for op in _ops(results):
        for timing in timings:
            rows = {k: v for k, v in results.rows.items() if k[0] == op and k[5] == timing}
            if not rows:
                continue
            for name, draw in (
                ("roofline", _roofline),
                ("speedup", _speedup_bars),
                ("batch", _scaling_with_batch),
                ("side", _scaling_with_side),
            ):
                figure = draw(results, op, rows)
                if figure is None:
                    continue
                path = folder / f"{op}-{timing}-{name}.png"
                figure.suptitle(f"{op} [{timing}]: {_where(results, rows)}", fontsize=9)
                figure.savefig(path, dpi=120, bbox_inches="tight")
                written.append(path)
    return written


def _ops(results: Results) -> list[str]:
    ops = {key[0] for key in results.rows}
    return sorted(ops, key=lambda op: (_OP_ORDER.index(op) if op in _OP_ORDER else 9, op))


def _where(results: Results, rows: Mapping[Key, list[Record]]) -> str:
    device = next(iter(rows.values()))[0]["device"]
    machine = results.machine
    return str(machine["gpu"] if device == "cuda" else machine["cpu"])


def _figure(height: float = 4.0) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(8, height), layout="constrained")


def _labels(rows: Mapping[Key, list[Record]]) -> list[str]:
    """Providers in a fixed order, so that each has the same colour in all plots of an op."""
    return sorted(
        {r["provider"] for v in rows.values() for r in v}, key=lambda p: (not is_ours(p), p)
    )


def _color(labels: Sequence[str], provider: str) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"](labels.index(provider) % 20)


def _roofline(results: Results, op: str, rows: Mapping[Key, list[Record]]) -> Any:
    """Operations per second over operations per byte; bytes per second for ops without any."""
    records = [r for v in rows.values() for r in v if r["bytes"]]
    device = records[0]["device"] if records else ""
    bandwidth = results.machine.get("copy_gb_per_s", {}).get(device)
    product = results.machine.get("matmul_gflop_per_s", {}).get(device)
    if not records or not bandwidth:
        return None
    figure = _figure()
    axes = figure.add_subplot()
    labels = _labels(rows)
    counts = all(r["flops"] for r in records)
    for provider in labels:
        own = [r for r in records if r["provider"] == provider]
        if counts:
            x = [r["flops"] / r["bytes"] for r in own]
            y = [r["flops"] / r["p50"] / 1e9 for r in own]
        else:
            x = [r["bytes"] / 1e6 for r in own]
            y = [r["gb_per_s"] for r in own]
        axes.loglog(x, y, "o", ms=4, color=_color(labels, provider), label=provider)
    low, high = axes.get_xlim()
    if counts:
        steps = [low * (high / low) ** (i / 50) for i in range(51)]
        roof = [min(bandwidth * step, product or math.inf) for step in steps]
        axes.loglog(steps, roof, "k-", lw=1, label="copy bandwidth, float32 product")
        axes.set_xlabel("operations / byte counted")
        axes.set_ylabel("GFLOP/s")
    else:
        axes.axhline(bandwidth, color="k", lw=1, label="copy bandwidth")
        axes.set_xlabel("MB counted")
        axes.set_ylabel("GB/s")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    return figure


def _speedup_bars(results: Results, op: str, rows: Mapping[Key, list[Record]]) -> Any:
    """Speed-up of the project's default choice over each peer, per row."""
    labels = _labels(rows)
    bars: list[tuple[str, dict[str, float]]] = []
    for key, providers in rows.items():
        own = next((r for r in providers if r["provider"] in ("auto", "package", "trainer")), None)
        peers = {} if own is None else {p: s for p, s in own["speedup"].items() if not is_ours(p)}
        if peers:
            bars.append((" ".join(filter(None, key[1:5])), peers))
    if not bars:
        return None
    names = [name for name in labels if any(name in peers for _, peers in bars)]
    figure = _figure(1 + 0.16 * len(bars) * (len(names) + 1))
    axes = figure.add_subplot()
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [j + i * height for j, (_, peers) in enumerate(bars) if name in peers]
        values = [peers[name] for _, peers in bars if name in peers]
        widths = [value - 1 for value in values]
        axes.barh(places, widths, height, left=1, color=_color(labels, name), label=name)
    axes.set_yticks([j + 0.4 for j in range(len(bars))], [name for name, _ in bars], fontsize=7)
    axes.set_ylim(len(bars), -0.2)
    axes.set_xscale("log")
    axes.axvline(1, color="k", lw=1)
    axes.set_xlabel("times faster than the peer (left of the line: slower)")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _scaling_with_batch(results: Results, op: str, rows: Mapping[Key, list[Record]]) -> Any:
    return _scaling(rows, "batch", fixed=("channels", "side"))


def _scaling_with_side(results: Results, op: str, rows: Mapping[Key, list[Record]]) -> Any:
    return _scaling(rows, "side", fixed=())


def _scaling(rows: Mapping[Key, list[Record]], axis: str, fixed: Iterable[str]) -> Any:
    """Seconds per item over ``axis``, one panel per dtype, mode, kind and ``fixed`` sizes.

    For ``axis`` "side", batch and channels may differ between points, within the limits of memory
    and time; the time is therefore divided by both.
    """
    panels: dict[tuple[str, ...], dict[str, dict[float, float]]] = {}
    for key, providers in rows.items():
        for record in providers:
            axes = record["axes"]
            if axis not in axes:
                return None
            panel = (key[2], key[3], key[4], *(str(axes.get(name)) for name in fixed))
            items = axes.get("batch", 1) * (axes.get("channels", 1) if axis == "side" else 1)
            lines = panels.setdefault(panel, {})
            lines.setdefault(record["provider"], {})[axes[axis]] = record["p50"] / items
    panels = {panel: lines for panel, lines in panels.items() if max(map(len, lines.values())) > 1}
    if not panels:
        return None
    labels = _labels(rows)
    columns = min(3, len(panels))
    figure = _figure(3.2 * -(-len(panels) // columns))
    for number, (panel, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(-(-len(panels) // columns), columns, number)
        for provider in labels:
            points = sorted(lines.get(provider, {}).items())
            if points:
                x, y = zip(*points, strict=True)
                axes.loglog(x, y, ".-", lw=1, color=_color(labels, provider), label=provider)
        axes.set_title(" ".join(filter(None, panel[:3])), fontsize=8)
        ticks = sorted({x for points in lines.values() for x in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(axis, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3, which="both")
        if number % columns == 1 or columns == 1:
            axes.set_ylabel("s / item" if axis == "batch" else "s / item and channel", fontsize=8)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, fontsize=7, loc="outside right center")
    return figure


# --- comparison -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Change:
    """Change in the time of one provider of one row between two results.

    Attributes:
        ratio: new median over old.
        corrected: ``ratio`` over that of the row's peers, whose code is unchanged, so that their
            ratio is that of the machine.
        apart: whether the corrected ranges from 20 to 80 % are disjoint.
    """

    key: Key
    provider: str
    ratio: float
    corrected: float
    apart: bool


def compare(new: Results, old: Results) -> list[Change]:
    """Changes of this project's providers, largest slow-down first."""
    changes = []
    for key, providers in new.rows.items():
        before = {record["provider"]: record for record in old.rows.get(key, [])}
        pairs = [(r, before[r["provider"]]) for r in providers if r["provider"] in before]
        peers = [n["p50"] / o["p50"] for n, o in pairs if not is_ours(n["provider"])]
        drift = statistics.median(peers) if peers else 1.0
        for now, then in pairs:
            if is_ours(now["provider"]):
                ratio = now["p50"] / then["p50"]
                apart = now["p20"] > then["p80"] * drift or now["p80"] < then["p20"] * drift
                changes.append(Change(key, now["provider"], ratio, ratio / drift, apart))
    return sorted(changes, key=lambda change: -change.corrected)


def regressions(changes: Iterable[Change], percent: float) -> list[Change]:
    """Slow-downs of more than ``percent`` that exceed the spread of the samples."""
    return [c for c in changes if c.apart and c.corrected > 1 + percent / 100]


def comparison(new: Results, old: Results, changes: Sequence[Change]) -> str:
    """The changes as Markdown."""
    lines = ["# Changes", ""]
    for name in ("cpu", "gpu", "threads", "torch", "triton", "cuda"):
        if new.machine[name] != old.machine[name]:
            lines += [f"- **{name} differs**: {old.machine[name]} before, {new.machine[name]} now"]
    lines += [
        f"- git: {old.machine['git']} before, {new.machine['git']} now",
        f"- rows only now: {len(set(new.rows) - set(old.rows))}, "
        f"only before: {len(set(old.rows) - set(new.rows))}",
        "",
        "| row | provider | new / old | relative to peers | beyond the spread |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for change in changes:
        lines.append(
            f"| {title(change.key)} | {change.provider} | {change.ratio:.2f} | "
            f"{change.corrected:.2f} | {'yes' if change.apart else ''} |"
        )
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("result", type=Path, help="file of pytest bench/ --benchmark-json")
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: RESULT without .json)"
    )
    parser.add_argument("--no-plots", action="store_true", help="write the table only")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="show changes since OLD")
    parser.add_argument(
        "--fail-if-regression",
        type=float,
        metavar="PERCENT",
        help="with --compare: exit with status 1 if a provider is slower by more than this",
    )
    options = parser.parse_args(arguments)
    if options.fail_if_regression is not None and options.compare is None:
        parser.error("--fail-if-regression needs --compare OLD")
    try:
        results = Results.read(options.result)
        old = None if options.compare is None else Results.read(options.compare)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if old is not None:
        changes = compare(results, old)
        print(comparison(results, old, changes))
        if options.fail_if_regression is None:
            return 0
        slower = regressions(changes, options.fail_if_regression)
        for change in slower:
            print(f"regression: {title(change.key)} {change.provider} x{change.corrected:.2f}")
        return 1 if slower else 0
    folder = options.out or options.result.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    images = [] if options.no_plots else plots(results, folder)
    text = markdown(results)
    if images:
        text += "\n## Plots\n\n" + "\n".join(f"![{p.stem}]({p.name})" for p in images) + "\n"
    table = folder / "results.md"
    table.write_text(text)
    print(f"{table}\n" + "\n".join(map(str, images)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
