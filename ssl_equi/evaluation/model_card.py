"""Model cards of exported encoders: what they are, how they are opened, and the numbers of their run."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_equi.errors import visible
from ssl_equi.evaluation.encoders import EXPORT_FOLDERS
from ssl_equi.evaluation.metrics import format_value
from ssl_equi.evaluation.results import RESULTS_FILE, ProbeRecord, read_records, read_results
from ssl_equi.evaluation.tables import describe_columns, in_short_tables, markdown_table, markdown_text
from ssl_equi.export.encoder import load_encoder, parts_of, read_encoder_config
from ssl_equi.export.timm_folders import how_timm_opens, modules_that_register

UNKNOWN = "not stated"
PART_MEANINGS = {
    "all": "all features",
    "inv": "the invariant part: what stays from view to view",
    "equi": "the equivariant part: what changes from view to view",
}


def model_card(folder: Path, opened_as: str) -> str:
    """The `README.md` of an exported encoder, for people and for the Hugging Face hub.

    Args:
        folder: of the encoder; the `results.json` of its run, if there is one, gives the numbers.
        opened_as: what `timm.create_model` is to be given: `hf-hub:OWNER/NAME` or `local-dir:FOLDER`.

    Raises:
        CheckpointError, UserError: the folder or the results are damaged.
    """
    config = read_encoder_config(folder)
    num_parameters = sum(parameter.numel() for parameter in load_encoder(folder).parameters())
    place = folder.resolve()
    results = (place.parent if place.name in EXPORT_FOLDERS else place) / RESULTS_FILE
    run = read_results(results)["run"] if results.exists() else {}
    records = in_short_tables(read_records(results)) if results.exists() else []
    tag = config.get("pretrained_cfg", {}).get("tag")
    sections = [
        _front_matter(config),
        f"# {_text(config['architecture'])}{f'.{_text(tag)}' if tag else ''}",
        f"An image encoder that was pretrained without labels. {how_timm_opens(config)}",
        _facts(config, num_parameters, run),
        _loading(config, opened_as),
        # A run's results are also of what lies above the encoder's features, such as the aggregates of sequences.
        _numbers([record for record in records if record.part in _parts(config)]),
    ]
    return "\n\n".join(section.strip("\n") for section in sections if section) + "\n"


def _front_matter(config: Mapping[str, Any]) -> str:
    """What the hub reads, in YAML; it knows licences by identifiers only."""
    stated = str(config.get("pretrained_cfg", {}).get("license") or "unknown")
    lines = [
        f"license: {stated if re.fullmatch(r'[a-z0-9.-]+', stated) else 'other'}",
        "library_name: timm",
        "pipeline_tag: image-feature-extraction",
        "tags: [timm, ssl-equi, image-feature-extraction, self-supervised-learning]",
    ]
    return "\n".join(["---", *lines, "---"])


def _facts(config: Mapping[str, Any], num_parameters: int, run: Mapping[str, Any]) -> str:
    """A table of what a user must know besides the weights, and one of the parts."""
    data, labels = config.get("pretrained_cfg", {}), config.get("ssl_equi", {})
    arguments = ", ".join(f"{name}={value!r}" for name, value in config.get("model_args", {}).items())
    facts = {
        "architecture": f"{config['architecture']}{f' ({arguments})' if arguments else ''}",
        "parameters": f"{num_parameters:,}",
        "features": str(config.get("num_features", UNKNOWN)),
        "objective": labels.get("objective", UNKNOWN),
        "trained on": f"{labels.get('trained_on', UNKNOWN)} (name and fingerprint)",
        "steps": f"{run['steps']:,}" if isinstance(run.get("steps"), int) else UNKNOWN,
        "licence of the weights": data.get("license", UNKNOWN),
    }
    if "input_size" in data:
        facts["images"] = (
            f"RGB, {data['input_size'][1]} x {data['input_size'][2]} pixels, resized {data.get('interpolation')}, "
            f"central crop of {data.get('crop_pct')}"
        )
        facts["normalisation"] = f"of values in [0, 1]: mean {data['mean']}, standard deviation {data['std']}"
    rows = [(fact, _text(value)) for fact, value in facts.items()]
    parts = [
        (f"`{part}`", f"{columns.start} to {columns.stop - 1}", PART_MEANINGS.get(part, ""))
        for part, columns in _parts(config).items()
    ]
    tables = [markdown_table(("", ""), rows, text_columns=2)]
    if parts:
        tables.append(markdown_table(("part", "columns of the features", ""), parts, text_columns=3))
    return "\n".join(tables)


def _loading(config: Mapping[str, Any], opened_as: str) -> str:
    imports = [f"import {module}" for module in ("timm", *modules_that_register(dict(config)))]
    lines = [
        "## How to load it", "", "```python", *imports,
        f'encoder = timm.create_model("{opened_as}", pretrained=True).eval()',
        "features = encoder(images)  # normalised as above",
        "```",
    ]  # fmt: skip
    return "\n".join(lines)


def _numbers(records: Sequence[ProbeRecord]) -> str:
    """A table of the run's numbers; empty without any."""
    if not records:
        return ""
    head = ("task", "part", "metric", "split", "protocol", "seed", "value", "baseline", "random", "n")
    rows = [
        (
            *map(_text, (record.task, record.part, record.metric, record.split, record.protocol, record.seed)),
            _value(record),
            *(format_value(record.metric, each) for each in (record.baseline, record.random_encoder)),
            f"{record.n:,}",
        )
        for record in records
    ]
    notes = [f"- {_text(line)}" for line in describe_columns(records, intervals_shown=True)]
    if any(record.object_standard_error is not None for record in records):
        notes.append("- ±: standard error over the evaluated objects")
    table = markdown_table(head, rows, text_columns=6)
    introduction = "What the run's evaluation read from the frozen features, each number from the split that is named."
    return "\n".join(["## Results", "", introduction, "", table, *notes])


def _value(record: ProbeRecord) -> str:
    """With its standard error and its interval, where there are any."""
    shown = format_value(record.metric, record.value)
    if record.object_standard_error is not None:
        shown += f" ± {format_value(record.metric, record.object_standard_error)}"
    if record.interval_low is not None and record.interval_high is not None:
        low, high = (format_value(record.metric, each) for each in (record.interval_low, record.interval_high))
        shown += f" [{low}, {high}]"
    return shown


def _parts(config: Mapping[str, Any]) -> dict[str, slice]:
    return parts_of(dict(config)) if "ssl_equi" in config else {}


def _text(value: object) -> str:
    return markdown_text(visible(str(value)))
