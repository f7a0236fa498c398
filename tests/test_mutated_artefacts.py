"""What a run writes and someone spoils: a sentence or equal weights, never a traceback, a hang or other numbers."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ssl_equi.checkpoint import list_checkpoints
from ssl_equi.encoders import create_encoder
from ssl_equi.errors import CheckpointError, UserError
from ssl_equi.evaluation.report import write as report
from ssl_equi.evaluation.report.compared_runs import read_evaluated_folder
from ssl_equi.evaluation.report.runs import read_curves
from ssl_equi.evaluation.report.write import write_evaluation_report
from ssl_equi.export.encoder import EncoderCard, load_encoder, save_encoder
from ssl_equi.export.predictor import PredictorCard, load_predictor, save_predictor
from ssl_equi.export.sequence_model import load_sequence_model, save_sequence_model
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.parts.heads import projector
from ssl_equi.objectives.parts.predictors import Hypernetwork, ProjectedPredictor
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.training.run import Run
from tests.evaluation.report_pages import made_arrays, make_evaluation, read_page, record
from tests.mutations import json_mutations, mutations
from tests.training.test_run import ToyConfig, ToyObjective, loss_lines, started, train

NUM_MUTATIONS = 200


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with checkpoints after 5 and 6."""
    return train(ToyConfig(out=tmp_path_factory.mktemp("trained") / "run", steps=6)).folder


@pytest.fixture
def spoilt(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def newest_checkpoint(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1]


def about_to_resume(folder: Path) -> Run:
    """The run as it is before `Run.resume`."""
    run = started(ToyConfig(out=folder, steps=7, resume=True))
    run.prepare(ToyObjective(4), lambda module: torch.optim.AdamW(module.parameters(), lr=0.05))
    return run


def mutated(content: bytes, rng: np.random.Generator, is_json: bool) -> bytes:
    """Other bytes than `content`."""
    while True:
        damaged = (json_mutations if is_json and rng.integers(2) else mutations)(content, rng)
        if damaged != content:
            return damaged


def only_user_errors(action: Callable[[], Any]) -> Any:
    """What `action` returns, or the `UserError` that it raised, which must be one sentence."""
    try:
        return action()
    except UserError as error:
        assert ": " in str(error), "the sentence ends with a cure, after a colon"
        return error


# ---------------------------------------------------------------- checkpoints


def test_every_mutation_of_a_checkpoint_is_found(spoilt: Path, trained: Path) -> None:
    """Half of the mutations of JSON files are edits that leave them valid JSON."""
    rng = np.random.default_rng(16)
    run = about_to_resume(spoilt)
    files = sorted(newest_checkpoint(spoilt).iterdir())
    assert len(files) == 7
    for number in range(NUM_MUTATIONS):
        file = files[number % len(files)]
        content = file.read_bytes()
        file.write_bytes(mutated(content, rng, file.suffix == ".json"))
        assert isinstance(only_user_errors(run.resume), CheckpointError), file
        file.write_bytes(content)
    assert run.resume() == 6
    assert loss_lines(spoilt) == loss_lines(trained)


HOSTILE_STATES = [
    "[]",
    "null",
    "{}",
    "1",
    '"text"',
    "{",
    "",
    "[" * 100_000,
    '{"step": null}',
    '{"step": [6]}',
    '{"step": 5}',
]


@pytest.mark.parametrize("content", HOSTILE_STATES, ids=lambda content: content[:14])
@pytest.mark.parametrize("name", ["run", "objective", "optimizer"])
def test_a_state_of_an_earlier_version_that_is_none_is_named(spoilt: Path, name: str, content: str) -> None:
    """Without checksums the content alone can tell."""
    checkpoint = newest_checkpoint(spoilt)
    (checkpoint / "checksums.json").unlink()
    (checkpoint / f"{name}.json").write_text(content)
    found = only_user_errors(about_to_resume(spoilt).resume)
    assert isinstance(found, CheckpointError) and str(checkpoint) in str(found)


def test_a_checkpoint_of_an_earlier_version_resumes_with_a_notice(
    spoilt: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about_to_resume(spoilt).resume()
    assert "checksums" not in capsys.readouterr().out
    (newest_checkpoint(spoilt) / "checksums.json").unlink()
    assert about_to_resume(spoilt).resume() == 6
    assert "is of an earlier version, without checksums" in capsys.readouterr().out
    assert loss_lines(spoilt) == loss_lines(trained)


def test_weights_of_an_earlier_version_that_are_not_finite_are_named(spoilt: Path) -> None:
    checkpoint = newest_checkpoint(spoilt)
    (checkpoint / "checksums.json").unlink()
    weights = load_file(checkpoint / "objective.safetensors")
    weights["/encoder.0.bias"][2] = float("nan")
    save_file(weights, checkpoint / "objective.safetensors")
    with pytest.raises(CheckpointError, match=r"weight 'encoder\.0\.bias' in checkpoint .*step-00000006 is not finite"):
        about_to_resume(spoilt).resume()


@pytest.mark.parametrize("file", ["optimizer.safetensors", "objective.safetensors", "run.json"])
def test_a_file_of_another_step_is_named(spoilt: Path, file: str) -> None:
    earlier, newest = list_checkpoints(spoilt / "checkpoints")
    shutil.copy(earlier / file, newest / file)
    with pytest.raises(CheckpointError, match=rf"step-00000006 is damaged \({file} is not the file that was saved"):
        about_to_resume(spoilt).resume()


def test_a_checkpoint_renamed_to_another_step_is_named(spoilt: Path) -> None:
    newest_checkpoint(spoilt).rename(spoilt / "checkpoints" / "step-00000009")
    with pytest.raises(CheckpointError, match=r"step-00000009 was saved after step 6"):
        about_to_resume(spoilt).resume()


# ---------------------------------------------------------------- metrics.jsonl, on resume


def test_every_mutation_of_the_log_resumes(spoilt: Path, trained: Path) -> None:
    """Lines that can't be read are dropped; the others stay as they are."""
    rng = np.random.default_rng(17)
    log, whole = spoilt / "metrics.jsonl", (trained / "metrics.jsonl").read_bytes()
    run = about_to_resume(spoilt)
    lines = set(whole.split(b"\n"))
    hostile = [
        b"[1]",
        b"null",
        b"{}",
        b'{"step": "x"}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"step": 1e999}',
        b'{"step": -1}',
    ]
    for number in range(NUM_MUTATIONS):
        middle = hostile[number % len(hostile)]
        log.write_bytes(whole + middle + b"\n" + whole if number % 2 else mutated(whole, rng, False))
        assert run.resume() == 6
        kept = log.read_bytes().splitlines()
        assert number % 2 == 0 or {line for line in kept if b"-1" not in line} <= lines
    log.write_bytes(whole)
    run.resume()
    assert log.read_bytes() == whole


# ---------------------------------------------------------------- exported folders


CARD = EncoderCard(
    "test_vit", 32, (0.5,) * 3, (0.2,) * 3, {"all": (0, 16)}, "toy", "toy 0", "other", "toy", {"img_size": 32}
)


def saved_encoder(folder: Path) -> Callable[[Path], nn.Module]:
    save_encoder(create_encoder("test_vit", 32), folder, CARD)
    return load_encoder


def saved_predictor(folder: Path) -> Callable[[Path], nn.Module]:
    module = ProjectedPredictor(8, slice(0, 8), projector(8, (8, 8)), Hypernetwork(dim=8, action_dim=4))
    save_predictor(module, folder, PredictorCard("toy", ToldActions.of("rotation"), "toy 0"))
    return load_predictor


def saved_sequence_model(folder: Path) -> Callable[[Path], nn.Module]:
    encoder = create_encoder("test_vit", 32)
    sizes = SeqJEPAConfig(
        action_width=8, layers=1, feedforward_width=16, predictor_hidden_width=8, momentum_target=False
    )
    sequences = {"source": "rendered", "actions": "rotation", "observed_views": 3}
    save_sequence_model(SeqJEPA(encoder, sizes), folder, CARD, sequences)
    return lambda opened: load_sequence_model(opened).objective


@pytest.mark.parametrize("save", [saved_encoder, saved_predictor, saved_sequence_model])
def test_every_mutation_of_an_exported_folder_is_named_or_harmless(save: Any, tmp_path: Path) -> None:
    load = save(tmp_path / "saved")
    expected = load(tmp_path / "saved").state_dict()
    rng = np.random.default_rng(18)
    files = sorted((tmp_path / "saved").iterdir())
    named = 0
    for number in range(NUM_MUTATIONS):
        file = files[number % len(files)]
        content = file.read_bytes()
        file.write_bytes(mutated(content, rng, file.suffix == ".json"))
        loaded = only_user_errors(lambda: load(tmp_path / "saved"))
        file.write_bytes(content)
        if isinstance(loaded, UserError):
            named += 1
            continue
        assert file.name == "config.json", "changed weights were taken"
        state = loaded.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert named > NUM_MUTATIONS / 2


# ---------------------------------------------------------------- what a report is made from


@pytest.fixture
def evaluated(tmp_path: Path, trained: Path) -> Path:
    """A folder with all that a page can draw."""
    folder = make_evaluation(
        tmp_path / "evaluated", [record(), record(task="relative_rotation", metric="r2_uniform")], made_arrays(0)
    )
    shutil.copy(trained / "metrics.jsonl", folder)
    return folder


def page_of(folder: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_evaluation_report([folder], folder / "report.html").read_text()


@pytest.mark.parametrize("name", ["results.json", "arrays.npz"])
def test_every_mutation_of_results_gives_a_page_or_a_sentence(evaluated: Path, name: str, monkeypatch: Any) -> None:
    """What isn't refused is drawn; drawing itself is left out where a mutation can't reach it."""
    rng = np.random.default_rng(19)
    file, drawn = evaluated / name, 0
    content = file.read_bytes()
    for section in ("errors", "retrieval", "maps", "spectrum", "orbits", "training"):
        monkeypatch.setattr(report, f"{section}_section", lambda *_: "")
    for _ in range(NUM_MUTATIONS):
        file.write_bytes(mutated(content, rng, name.endswith(".json")))
        outcome = only_user_errors(lambda: page_of(evaluated))
        assert isinstance(outcome, UserError) or read_page(outcome)
        drawn += isinstance(outcome, str)
    assert drawn > 0 or name == "arrays.npz"


def test_every_mutation_of_the_log_gives_a_page(evaluated: Path, monkeypatch: Any) -> None:
    rng = np.random.default_rng(20)
    file = evaluated / "metrics.jsonl"
    content = file.read_bytes()
    hostile = [
        b'{"event": "loss", "step": %s, "loss": %s}' % (step, loss)
        for step in (b"1", b"null", b"[]", b"1e300", b"10" * 200, b"NaN")
        for loss in (b"1", b"1e308", b"-1e-320", b"10" * 200, b'"x"', b"true", b"Infinity")
    ] + [b"[" * 100_000, b"\xff", b"[1]", b'{"event": "online_probe", "step": 1, "\\u0000<\\ud800>/top1": 1}']
    for number in range(NUM_MUTATIONS):
        damaged = content + hostile[number % len(hostile)] + b"\n" if number % 2 else mutated(content, rng, False)
        file.write_bytes(damaged)
        for event in ("loss", "online_probe"):
            for steps, values in read_curves(file, event).values():
                assert np.isfinite(steps).all() and np.isfinite(values).all()
    file.write_bytes(content + b"\n".join(hostile) + b"\n")
    assert "can't be drawn" not in page_of(evaluated)


@pytest.mark.parametrize("key", sorted(made_arrays(0)))
def test_an_array_of_another_rank_or_type_is_left_out_by_name(evaluated: Path, key: str) -> None:
    """The checksum is right: somebody wrote these arrays."""
    arrays = made_arrays(0)
    for other in (np.array("text"), np.zeros((2, 3, 4, 1)), np.zeros((0, 5, 2, 2), np.uint8)):
        make_evaluation(evaluated, [record()], arrays | {key: other})
        read = read_evaluated_folder(evaluated)
        assert key not in read.arrays
        assert any(key in note and "can't be drawn" in note for note in read.notes)


def test_arrays_that_do_not_belong_together_cost_their_section_only(evaluated: Path) -> None:
    make_evaluation(evaluated, [record()], made_arrays(0) | {"map_labels": np.arange(7)})
    with pytest.warns(UserWarning, match="section 'maps' can't be drawn"):
        page = write_evaluation_report([evaluated], evaluated / "report.html").read_text()
    assert "section &#x27;maps&#x27; can&#x27;t be drawn" in page
    assert {"results", "errors", "spectrum", "orbits", "views"} <= set(read_page(page).ids)


def test_labels_decide_about_no_memory(evaluated: Path) -> None:
    labels = np.full(600, 2**60)
    labels[:300] = -5
    make_evaluation(evaluated, [record()], made_arrays(0) | {"map_labels": labels})
    assert f"class {2**60}" in page_of(evaluated)


def test_names_that_cannot_be_shown_are_escaped_on_the_page(evaluated: Path) -> None:
    names = np.array(["caf\udce9", "a\x00b", "\x1b[31m", "plain", "<b>"])
    make_evaluation(evaluated, [record(baseline_name="caf\udce9")], made_arrays(0) | {"class_names": names})
    page = page_of(evaluated)
    page.encode()
    for shown in ("caf\\xe9", "a\\x00b", "\\x1b[31m"):
        assert shown in read_page(page).text
    assert "can't be drawn" not in page and "\x00" not in page and "\x1b" not in page
