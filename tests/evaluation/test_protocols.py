"""What each protocol asks: the tasks that it states, through the suite, through probe.py, and at the end of a run."""

from types import SimpleNamespace
from typing import Any

import pytest

from ssl_equi.evaluation import command
from ssl_equi.evaluation.protocol import AUGMENTATION_EQUIVARIANCE, CORE_TASKS, PROBE_PROTOCOLS, ProtocolName
from ssl_equi.evaluation.suite import asked_tasks
from ssl_equi.latents.schema import THREEDIEBENCH_T
from ssl_equi.runtime.progress import LiveProgress
from ssl_equi.training import ending
from tests.fakes import OF_FEATURES
from tests.launched import ROOT, load_script

POSED = ["relative_rotation", "translation_object", "translation_base"]
STATED: dict[ProtocolName, list[str]] = {
    "ssl_equi": [*OF_FEATURES, AUGMENTATION_EQUIVARIANCE],
    "embedded": [*CORE_TASKS, AUGMENTATION_EQUIVARIANCE],
    "sie": ["classification", "relative_rotation", "colour"],
    "seq_jepa": ["classification", "relative_rotation", "absolute_rotation", "colour"],
    "equicaps": ["classification", *POSED, "colour"],
    "care": ["classification", AUGMENTATION_EQUIVARIANCE],
    "care_imagenet100": ["classification", AUGMENTATION_EQUIVARIANCE],
    "essl": ["classification", "knn_weighted"],
    "essl_imagenet": ["classification"],
}
NOBODY: Any = SimpleNamespace(name="nobody", predictor=None)
MOVING: Any = SimpleNamespace(evaluation=SimpleNamespace(schema=THREEDIEBENCH_T, split="test"), name="3diebench-pt")


class AskedError(Exception):
    """What was to be asked, which is all that these tests want to know."""


def remember(source: Any, data: Any, protocol: Any, *, tasks: tuple[str, ...] = (), **_: Any) -> None:
    raise AskedError(
        [task.name for task in asked_tasks(NOBODY.name, NOBODY.predictor, data.evaluation.schema, protocol, tasks)]
    )


@pytest.mark.parametrize("name", PROBE_PROTOCOLS)
@pytest.mark.parametrize("door", ["suite", "probe", "ending"])
def test_the_tasks_of_a_protocol_are_asked_through_every_door(
    name: ProtocolName, door: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    probe = load_script(ROOT / "evaluation" / "probe.py")
    for module in (command, probe, ending):
        monkeypatch.setattr(module, "evaluate", remember)
    for module in (command, probe):
        monkeypatch.setattr(module, "open_encoder_and_data", lambda config: (NOBODY, MOVING))
    with pytest.raises(AskedError) as asked:
        if door == "suite":
            command.evaluate_command(command.EvaluationConfig("nobody", protocol=name, out=tmp_path))
        elif door == "probe":
            probe.main(probe.Config("nobody", protocol=name, out=tmp_path))
        else:
            monkeypatch.setattr(ending, "EncoderSource", lambda **_: NOBODY)
            monkeypatch.setattr(ending, "state_sha256", lambda module: "")
            monkeypatch.setattr(ending, "probed_parts", lambda objective: {})
            config = SimpleNamespace(
                probe_protocol=name, image_size=8, encoder="", seed=0, compare_with_random=False, on_bad_record="raise",
                max_skipped=0, tasks=(),
            )  # fmt: skip
            run: Any = SimpleNamespace(name="nobody", device="cpu", processes=SimpleNamespace(rank=0))
            objective: Any = SimpleNamespace(encoder=None, latent_predictor=lambda: None)
            ending.Ending(run, config, NOBODY, MOVING, {}).probe(objective, LiveProgress(False))  # type: ignore[arg-type]
    (found,) = asked.value.args
    # A run ends with one task of each kind besides, so that runs with different protocols can be compared.
    further = [*CORE_TASKS, AUGMENTATION_EQUIVARIANCE] if door == "ending" else []
    assert set(found) == {*STATED[name], *further} and len(found) == len(set(found))
