"""The plot of `benchmarks.decode`: a roofline, and speed against the filled length."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np


def draw_plot(folder: str, content: dict[str, Any]) -> Path | None:
    """`folder/decode.png`; nothing where matplotlib is not installed."""
    if not importlib.util.find_spec("matplotlib"):
        return None
    from matplotlib.figure import Figure  # noqa: PLC0415  (an extra)

    figure = Figure(figsize=(10, 4), layout="constrained")
    roof, speed = figure.subplots(1, 2)
    _roofline(roof, content)
    _speed(speed, content["cases"])
    options = content["options"]
    figure.suptitle(
        f"{options['model'] or options['shape'] or 'embedded'}, {content['dtype']}, {content['device']}"
    )
    path = Path(folder) / "decode.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _names(cases: list[dict[str, Any]]) -> list[str]:
    return list(cases[0]["contestants"])


def _roofline(axes: Any, content: dict[str, Any]) -> None:
    """Operations per second over operations per byte."""
    cases, top = content["cases"], content["operations_per_second"]
    bandwidth = float(np.median([case["bandwidth"]["median"] for case in cases]))
    intensity = [case["operations_per_step"] / sum(case["bytes"].values()) for case in cases]
    span = np.geomspace(min(intensity) / 2, max(2 * top / bandwidth, 2 * max(intensity)), 100)
    axes.plot(span, np.minimum(span * bandwidth, top) / 1e12, "k-", label="roof, measured")
    for name in _names(cases):
        speeds = [
            case["operations_per_step"]
            * case["contestants"][name]["tokens_per_second"]["median"]
            / case["batch"]
            for case in cases
        ]
        axes.plot(intensity, np.array(speeds) / 1e12, "o", label=name)
    axes.set(title="roofline", xlabel="operations per byte", ylabel="10¹² operations per second")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _speed(axes: Any, cases: list[dict[str, Any]]) -> None:
    """Tokens per second over the filled tokens; one line per contestant, batch and buffer."""
    buffers = sorted({(case["batch"], case["slots"]) for case in cases})
    colors = {name: f"C{i}" for i, name in enumerate(_names(cases))}
    for batch, slots in buffers:
        chosen = [case for case in cases if (case["batch"], case["slots"]) == (batch, slots)]
        filled = [case["filled_on_average"] for case in chosen]
        limit = [case["limit_tokens_per_second"]["median"] for case in chosen]
        axes.plot(filled, limit, "k+--", lw=0.8)
        for name, color in colors.items():
            speeds = [case["contestants"][name]["tokens_per_second"]["median"] for case in chosen]
            axes.plot(filled, speeds, "o-", color=color)
            axes.annotate(f"{batch} × {slots}", (filled[-1], speeds[-1]), fontsize=6)
    axes.plot([], [], "k+--", lw=0.8, label="limit")
    for name, color in colors.items():
        axes.plot([], [], "o-", color=color, label=name)
    axes.set(title="speed (batch × slots)", xlabel="filled tokens", ylabel="tokens per second", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
