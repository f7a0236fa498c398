"""Campaigns as files: campaign.toml, which says what is run, and one JSON file for each finished run.

A campaign is a folder under `docs/campaigns/`. Its campaign.toml:

    title = "Rotation of unseen objects, over training"
    about = "What is asked, and what was expected before the runs."
    seeds = [0, 1, 2]
    options = "--data-dir {many} --image-size 32"          # of every run

    [data]                    # commands that build it, "" if it is given by --data; {NAME} is its folder
    many = "datasets/procedural.py --out {many} --set.image-size 32"

    [[method]]
    name = "sie"
    recipe = "recipes/sie.py"
    options = "--objective.projector 512 512 512"
    epochs = [3, 9, 30]                                     # a run each; every method has equally many budgets
    images_per_object = 2                                   # through the encoder with gradient, in an epoch

    [[judge]]                                               # asked of every run, or of `methods` alone
    name = "probes"
    command = "evaluation/suite.py --encoder {run} --data-dir {many}"
    figures = ["classification:top1", "relative_rotation:r2_uniform"]      # TASK:METRIC that are kept, of every part

    [[claim]]
    text = "SIE's equivariant part knows more of the rotation than VICReg"
    expected = "above at every budget, and further with training"
    first = "sie:equi"                                      # METHOD:PART
    second = "vicreg:all"
    figure = "probes/relative_rotation:r2_uniform"          # JUDGE/TASK:METRIC

A run's file holds its figures. Those that a claim is about come with their values on resampled objects: the same
objects for all runs, so that any two runs can be compared as pairs without their predictions.
"""

import dataclasses
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ssl_equi.errors import UserError
from ssl_equi.files import read_json_object, write_atomically

CAMPAIGN_FILE, RUNS_FOLDER = "campaign.toml", "runs"

Part = TypeVar("Part")


@dataclass(frozen=True)
class Method:
    """A recipe with options, at several budgets.

    Attributes:
        name: begins the names of its runs.
        recipe: the script, from the root of the repository.
        epochs: one for each budget, ascending.
        images_per_object: that go through the encoder with gradient in an epoch.
        label: in tables and figures; the name when empty.
    """

    name: str
    recipe: str
    epochs: tuple[int, ...]
    images_per_object: int
    options: str = ""
    label: str = ""


@dataclass(frozen=True)
class Judge:
    """A command that leaves its results.json in the folder that it is given by --out.

    Attributes:
        name: of what it asks; two of one name ask different methods.
        figures: TASK:METRIC of its records that are kept, of every part.
        methods: that are asked; all when empty.
    """

    name: str
    command: str
    figures: tuple[str, ...]
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """That one method is above another in a figure, each METHOD:PART; written before the runs."""

    text: str
    expected: str
    first: str
    second: str
    figure: str


@dataclass(frozen=True)
class PlannedRun:
    """One run of a campaign."""

    method: Method
    budget: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method.name}-{self.method.epochs[self.budget]}-seed{self.seed}"


@dataclass(frozen=True)
class Campaign:
    """What campaign.toml says.

    Attributes:
        options: of every run.
        data: commands that build the data sets, by name.
    """

    folder: Path
    title: str
    about: str
    seeds: tuple[int, ...]
    method: tuple[Method, ...]
    judge: tuple[Judge, ...]
    options: str = ""
    data: dict[str, str] = dataclasses.field(default_factory=dict)
    claim: tuple[Claim, ...] = ()

    @property
    def figures(self) -> list[str]:
        """What is kept, each JUDGE/TASK:METRIC."""
        return list(dict.fromkeys(f"{judge.name}/{figure}" for judge in self.judge for figure in judge.figures))

    def judges_of(self, method: Method) -> list[Judge]:
        """Those that a method is asked by."""
        return [judge for judge in self.judge if not judge.methods or method.name in judge.methods]

    def runs(self) -> list[PlannedRun]:
        """Cheap ones first, and every method once before the next seed, so that what is finished can be compared."""
        return [
            PlannedRun(method, budget, seed)
            for budget in range(len(self.method[0].epochs))
            for seed in self.seeds
            for method in self.method
        ]

    def file_of(self, run: str) -> Path:
        """Where the figures of a run are kept."""
        return self.folder / RUNS_FOLDER / f"{run}.json"

    def finished(self) -> dict[str, dict[str, Any]]:
        """Contents of the files of finished runs, by name."""
        files = {run.name: self.file_of(run.name) for run in self.runs()}
        return {name: read_json_object(path, UserError) for name, path in files.items() if path.exists()}


def read_campaign(folder: Path) -> Campaign:
    """The campaign of a folder.

    Raises:
        UserError: campaign.toml is missing, no TOML, or says something else than its fields.
    """
    path = folder / CAMPAIGN_FILE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CAMPAIGN_FILE}: give the folder of a campaign") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML: {error}") from None
    campaign = _part_of(Campaign, content | {"folder": folder}, str(path))
    _check(campaign, path)
    return campaign


def write_run(path: Path, content: dict[str, Any]) -> None:
    """A run's file, atomically; a line for each entry and each figure, so that changes can be read."""
    figures = ",\n  ".join(json.dumps(figure) for figure in content["figures"])
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items() if name != "figures"]
    lines.append(f'"figures": [\n  {figures}\n ]')
    write_atomically(path, "{\n " + ",\n ".join(lines) + "\n}\n", UserError)


def _part_of(kind: type[Part], table: Any, where: str) -> Part:
    """A dataclass from a table; UserError names what is missing, unknown or of another type."""
    if not isinstance(table, dict):
        raise UserError(f"{where} is {table!r}: write a table with {', '.join(_names(kind))}")
    unknown = [name for name in table if name not in _names(kind)]
    if unknown:
        raise UserError(f"{where} has {unknown[0]!r}, which is none of {', '.join(_names(kind))}")
    hints, values = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in table:
            values[field.name] = _value_of(hints[field.name], table[field.name], f"{where}, {field.name},")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where} has no {field.name!r}: add it")
    return kind(**values)


def _value_of(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _part_of(hint, value, where)
    if getattr(hint, "__origin__", None) is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} is {value!r}: give a list")
        return tuple(_value_of(hint.__args__[0], entry, where) for entry in value)
    expected = dict if getattr(hint, "__origin__", None) is dict else hint
    if not isinstance(value, expected) or isinstance(value, bool):
        raise UserError(f"{where} is {value!r}: give a {expected.__name__}")
    return value


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _check(campaign: Campaign, path: Path) -> None:
    if not campaign.method or not campaign.seeds or not campaign.judge:
        raise UserError(f"{path} needs at least one method, one seed and one judge")
    names = [method.name for method in campaign.method]
    for method in campaign.method:
        if names.count(method.name) > 1:
            raise UserError(f"{path} has two methods named {method.name!r}: give each a name of its own")
        if len(method.epochs) != len(campaign.method[0].epochs) or not method.epochs:
            raise UserError(
                f"{path}: {method.name} has {len(method.epochs)} epochs and {names[0]} has "
                f"{len(campaign.method[0].epochs)}: give each method one for each budget"
            )
        asked = [judge.name for judge in campaign.judges_of(method)]
        doubled = next((name for name in asked if asked.count(name) > 1), None)
        if doubled is not None:
            raise UserError(f"{path} asks {method.name} by two judges named {doubled!r}: let one leave it to the other")
    sides = [side.partition(":")[0] for claim in campaign.claim for side in (claim.first, claim.second)]
    for name in [*sides, *(name for judge in campaign.judge for name in judge.methods)]:
        if name not in names:
            raise UserError(f"{path} speaks of the method {name!r}: choose from {', '.join(names)}")
    for figure in (figure for judge in campaign.judge for figure in judge.figures):
        if figure.count(":") != 1:
            raise UserError(f"{path} has the figure {figure!r}: write TASK:METRIC")
    for claim in campaign.claim:
        if claim.figure not in campaign.figures:
            raise UserError(f"{path} has a claim of {claim.figure!r}: choose from {', '.join(campaign.figures)}")
