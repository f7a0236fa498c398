"""Tables and learning curves of a campaign, as README.md and curves.svg in its folder, from its finished runs.

    python tools/campaign_page.py docs/campaigns/rotation

Cells are means ± standard deviations over pretraining seeds. Claims compare two methods in one figure: the mean
difference, with a 95 % bootstrap interval over judged objects, which both share, and over the seeds of each; of metrics
that don't follow from single objects, Welch's over the seeds alone.
"""

import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from campaign_files import Campaign, Claim, Method, read_campaign

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.errors import UserError
from ssl_equi.evaluation.bootstrap import COVERAGE
from ssl_equi.evaluation.metrics import fixed
from ssl_equi.evaluation.report.figures import DASHES, MARKERS
from ssl_equi.evaluation.tables import markdown_table, spread
from ssl_equi.files import write_atomically

PANELS_IN_A_ROW = 2
SAME = 0.01  # differences that are surely smaller are none
SEED_DRAWS = 20  # for each draw of objects
Z_OF_INTERVAL, Z_OF_POWER = 1.96, 0.84  # 95 % intervals, which four of five repetitions find apart
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f")

Runs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Config:
    """Which campaign."""

    campaign: Annotated[Path, tyro.conf.Positional]
    """Folder with campaign.toml and the files of runs."""


@dataclass(frozen=True)
class Row:
    """A method's part at one budget: a figure of each of its seeds.

    Attributes:
        resampled: values on resampled objects, [seeds, resamples]; None where the metric doesn't follow from them.
    """

    images: int
    values: tuple[float, ...]
    resampled: np.ndarray | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None


class FinishedCampaign:
    """A campaign with the runs that are finished."""

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.runs = list(campaign.finished().values())
        if not self.runs:
            raise UserError(f"{campaign.folder} has no finished runs: run tools/campaign.py first")

    def kept(self, method: str, figure: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """The runs of a method, each with its numbers of a figure JUDGE/TASK:METRIC, one a part."""
        return [
            (run, found)
            for run in self.runs
            if run["method"] == method
            for found in run["figures"]
            if f"{found['judge']}/{found['task']}:{found['metric']}" == figure
        ]

    def row(self, method: str, part: str, figure: str, budget: int) -> Row | None:
        """None where no run has the figure."""
        kept = self.kept(method, figure)
        pairs = [(run, found) for run, found in kept if run["budget"] == budget and found["part"] == part]
        if not pairs:
            return None
        resampled = [found["resampled"] for _, found in pairs]
        return Row(
            images=pairs[0][0]["images"],
            values=tuple(found["value"] for _, found in pairs),
            resampled=np.array(resampled) if all(resampled) else None,
        )

    def parts(self, method: str, figure: str) -> list[str]:
        """Of a method that have the figure, in the order in which they were judged."""
        return list(dict.fromkeys(found["part"] for _, found in self.kept(method, figure)))

    def images(self, budget: int) -> float:
        """Of the runs of a budget, which differ a little between methods."""
        return statistics.median(run["images"] for run in self.runs if run["budget"] == budget)

    @property
    def budgets(self) -> list[int]:
        """Those that any run is finished of, ascending."""
        return sorted({run["budget"] for run in self.runs})


def main(config: Config) -> None:
    finished = FinishedCampaign(read_campaign(config.campaign))
    write_atomically(config.campaign / "curves.svg", curves_svg(finished), UserError)
    write_atomically(config.campaign / "README.md", page(finished), UserError)
    print(f"{config.campaign / 'README.md'}: {len(finished.runs)} of {len(finished.campaign.runs())} runs")


def page(finished: FinishedCampaign) -> str:
    """The page in Markdown."""
    campaign = finished.campaign
    sections = [f"# {campaign.title}", campaign.about.strip(), origin(finished)]
    sections += ["## Claims", claims_table(finished)] if campaign.claim else []
    sections += ["## Learning curves", "![Figures over images seen in training, a line per method](curves.svg)"]
    for figure in campaign.figures:
        sections += [f"## {spelled(figure)}", figure_table(finished, figure)]
    sections += ["## Training", training_table(finished), "## Commands", commands(campaign)]
    return "\n\n".join(sections) + "\n"


def spelled(figure: str) -> str:
    """JUDGE/TASK:METRIC as a heading."""
    judge, _, rest = figure.partition("/")
    task, _, metric = rest.partition(":")
    return f"{judge}: {task}, {metric}"


def origin(finished: FinishedCampaign) -> str:
    """Protocol, judged objects, machine, hours and commits of all runs."""
    runs, figures = finished.runs, [figure for run in finished.runs for figure in run["figures"]]
    judged = _listed(
        f"{f['judge']} by protocol `{f['protocol']}` on {f['num_objects']} objects of `{f['split']}`" for f in figures
    )
    machines = _listed(f"{run['device']} ({run['cpu']}), torch {run['torch']}, timm {run['timm']}" for run in runs)
    return (
        f"{len(runs)} of {len(finished.campaign.runs())} runs are finished: {sum(run['hours'] for run in runs):.1f} "
        f"hours of training on {machines}, at {_listed(run['commit'] for run in runs)}. Judges: {judged}. "
        "Images are those that went through the encoder with gradient; cells are means ± standard deviations over "
        "pretraining seeds."
    )


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def figure_table(finished: FinishedCampaign, figure: str) -> str:
    """A row for each method and part, a column for each budget."""
    head = ["method", "part", *(budget_name(finished, budget) for budget in finished.budgets)]
    kept = [finished.kept(method.name, figure) for method in finished.campaign.method]
    baselines = {found["baseline_name"]: found["baseline"] for pairs in kept for _, found in pairs}
    lines = [[name, "-", *([fixed(value, 3)] * len(finished.budgets))] for name, value in baselines.items()]
    lines += random_lines(finished, figure)
    for method in finished.campaign.method:
        for part in finished.parts(method.name, figure):
            rows = [finished.row(method.name, part, figure, budget) for budget in finished.budgets]
            lines.append([label_of(method), f"`{part}`", *(cell(row) for row in rows)])
    return markdown_table(head, lines).rstrip()


def random_lines(finished: FinishedCampaign, figure: str) -> list[list[str]]:
    """A row for each part of the random encoders that methods were compared with; those of one architecture are one."""
    values: dict[tuple[str, str], list[float]] = {}
    for method in finished.campaign.method:
        for part in finished.parts(method.name, figure):
            of_part = [found for _, found in finished.kept(method.name, figure) if found["part"] == part]
            known = [found["random_encoder"] for found in of_part if found["random_encoder"] is not None]
            if known and set(known) not in [set(found) for (_, other), found in values.items() if other == part]:
                values[label_of(method), part] = known
    return [
        [f"random encoder, as of {label}", f"`{part}`", *[fixed(statistics.fmean(known), 3)] * len(finished.budgets)]
        for (label, part), known in values.items()
    ]


def budget_name(finished: FinishedCampaign, budget: int) -> str:
    """What tables and curves call a budget."""
    return f"{finished.images(budget) / 1000:,.0f} k images"


def label_of(method: Method) -> str:
    """What tables and curves call a method."""
    return method.label or method.name


def cell(row: Row | None) -> str:
    """Mean ± standard deviation over the seeds; the value alone of one seed."""
    if row is None:
        return "-"
    return spread(row.values) + (" (1 seed)" if len(row.values) == 1 else "")


# ---------------------------------------------------------------- claims


@dataclass(frozen=True)
class Difference:
    """Of two methods in one figure at one budget.

    Attributes:
        budget: what tables call it.
        complete: whether all seeds of both are there.
        interval: of the difference, over objects and seeds, or over seeds alone where a metric doesn't follow from
            single objects; None of one seed.
        over_objects: whether it is over objects too.
        detectable: the smallest difference that as many seeds would show in four of five repetitions.
    """

    budget: str
    complete: bool
    mean: float
    interval: tuple[float, float] | None
    over_objects: bool
    detectable: float | None


def claims_table(finished: FinishedCampaign) -> str:
    """Each claim with the difference at each budget, and what follows at the largest one."""
    head = ["claim", "expected", *(budget_name(finished, budget) for budget in finished.budgets), "detectable", "found"]
    lines = []
    for claim in finished.campaign.claim:
        differences = [difference(finished, claim, budget) for budget in finished.budgets]
        last = next((found for found in reversed(differences) if found is not None and found.complete), None)
        power = "-" if last is None or last.detectable is None else fixed(last.detectable, 3)
        named = f"{claim.text}: {claim.first} less {claim.second}, {claim.figure}"
        begun = last is None and any(found is not None for found in differences)
        told = "seeds are missing" if begun else verdict(last)
        lines.append([named, claim.expected, *(difference_cell(found) for found in differences), power, told])
    return markdown_table(head, lines).rstrip()


def difference(finished: FinishedCampaign, claim: Claim, budget: int) -> Difference | None:
    """First less second; None where one of them was not run."""
    sides = [side.split(":") for side in (claim.first, claim.second)]
    first, second = (finished.row(method, part, claim.figure, budget) for method, part in sides)
    if first is None or second is None:
        return None
    detectable = None
    interval, over_objects = paired_interval(first.resampled, second.resampled), True
    if first.deviation is not None and second.deviation is not None:
        error = (first.deviation**2 / len(first.values) + second.deviation**2 / len(second.values)) ** 0.5
        detectable = (Z_OF_INTERVAL + Z_OF_POWER) * error
        if interval is None:
            interval, over_objects = interval_over_seeds(first.values, second.values), False
    complete = len(first.values) == len(second.values) == len(finished.campaign.seeds)
    name, mean = budget_name(finished, budget), first.mean - second.mean
    return Difference(name, complete, mean, interval, over_objects, detectable)


def interval_over_seeds(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Welch's 95 % interval of the difference of two means, of seeds that share nothing."""
    from scipy.stats import ttest_ind  # of the group dev, and of this alone

    found = ttest_ind(first, second, equal_var=False).confidence_interval(COVERAGE)
    return float(found.low), float(found.high)


def paired_interval(first: np.ndarray | None, second: np.ndarray | None) -> tuple[float, float] | None:
    """Percentiles of the difference of means over seeds, `[seeds, resamples]` each.

    A column is one draw of objects, the same for both; seeds are drawn anew for each, with replacement.
    """
    if first is None or second is None:
        return None
    generator = np.random.default_rng(0)
    found = []
    for _ in range(SEED_DRAWS):
        means = []
        for values in (first, second):
            drawn = generator.integers(0, len(values), values.shape)
            means.append(np.take_along_axis(values, drawn, axis=0).mean(axis=0))
        found.append(means[0] - means[1])
    low, high = np.percentile(np.concatenate(found), [50 * (1 - COVERAGE), 50 * (1 + COVERAGE)])
    return float(low), float(high)


def difference_cell(found: Difference | None) -> str:
    """The difference with its interval."""
    if found is None:
        return "-"
    if found.interval is None:
        return f"{found.mean:+.3f}"
    ends = ", ".join(fixed(end, 3) for end in found.interval)
    return f"{found.mean:+.3f} [{ends}]{'' if found.over_objects else ', over seeds alone'}"


def verdict(last: Difference | None) -> str:
    """What the interval says at the largest budget of which all seeds are there."""
    if last is None or last.interval is None:
        return "not measured"
    low, high = last.interval
    if max(abs(low), abs(high)) < SAME:
        found = f"equal within {SAME}"
    else:
        found = "shown" if low > 0 else "the other way" if high < 0 else "not decided"
    return f"{found} at {last.budget}"


# ---------------------------------------------------------------- training, curves, commands


def training_table(finished: FinishedCampaign) -> str:
    """Of the runs of the largest finished budget of each method, how the loss and the gain of the actions went."""
    lines = []
    for method in finished.campaign.method:
        runs = [run for run in finished.runs if run["method"] == method.name]
        if runs:
            largest = max(run["budget"] for run in runs)
            run = min((run for run in runs if run["budget"] == largest), key=lambda run: run["seed"])
            gains = " ".join(f"{100 * gain:.1f}" for gain in run["training"].get("action_gain", [])) or "-"
            losses = " ".join(f"{loss:.4g}" for loss in run["training"].get("loss", []))
            lines.append([label_of(method), run["run"], f"{run['steps']:,}", f"{run['hours']:.2f}", losses, gains])
    head = ["method", "run", "steps", "hours", "loss over training", "action gain in %, over training"]
    return markdown_table(head, lines).rstrip()


def curves_svg(finished: FinishedCampaign) -> str:
    """A panel for each figure: means over seeds, with their standard deviations, over images."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figures = finished.campaign.figures
    with rc_context({"svg.hashsalt": "campaign", "svg.fonttype": "none", "font.size": 9}):
        rows = math.ceil(len(figures) / PANELS_IN_A_ROW)
        drawing = Figure(figsize=(4.4 * PANELS_IN_A_ROW, 3.2 * rows + 0.8), layout="constrained")
        for place, figure in enumerate(figures):
            draw_curves(drawing.add_subplot(rows, PANELS_IN_A_ROW, place + 1), finished, figure)
        handles = {
            label: h for axes in drawing.axes for h, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        drawing.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
        content = io.StringIO()
        drawing.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def draw_curves(axes: Any, finished: FinishedCampaign, figure: str) -> None:
    """Lines of all methods; those of parts of one method have its colour."""
    for index, method in enumerate(finished.campaign.method):
        for number, part in enumerate(finished.parts(method.name, figure)):
            rows = [finished.row(method.name, part, figure, budget) for budget in finished.budgets]
            shown = [row for row in rows if row is not None]
            axes.errorbar(
                [row.images for row in shown], [row.mean for row in shown], [row.deviation or 0 for row in shown],
                label=label_of(method) + ("" if part == "all" else f", {part}"),
                color=COLOURS[index % len(COLOURS)], linestyle=DASHES[number % len(DASHES)],
                marker=MARKERS[index % len(MARKERS)], markersize=3.5, linewidth=1.3, capsize=2,
            )  # fmt: skip
    axes.set_xscale("log")
    names = [budget_name(finished, budget) for budget in finished.budgets]
    axes.set_xticks([finished.images(budget) for budget in finished.budgets], names)
    axes.minorticks_off()
    axes.set_title(spelled(figure), fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def commands(campaign: Campaign) -> str:
    """The command that runs all, and what a run of each method is given."""
    folder = f"docs/campaigns/{campaign.folder.resolve().name}"
    runs = [f"{method.recipe} {campaign.options} {method.options}".split() for method in campaign.method]
    lines = [
        f"python tools/campaign.py {folder} --work WORK --jobs 2",
        f"python tools/campaign_page.py {folder}",
        *(f"# {' '.join(words)} --epochs {{{','.join(map(str, method.epochs))}}}"
          for words, method in zip(runs, campaign.method, strict=True)),
        *(f"# {judge.command}" for judge in campaign.judge),
    ]  # fmt: skip
    return "\n".join(["```", *lines, "```"])


if __name__ == "__main__":
    explain_errors(lambda: main(parse_command_line(Config, __doc__ or "")))
