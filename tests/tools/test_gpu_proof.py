"""The proof on a GPU, as far as a CPU can try it: each phase's code at tiny sizes, and what holds phases together."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tools" / "gpu"
KEYS = ["phase", "name", "value", "unit", "target", "passed", "seconds", "details"]

Plan = Callable[..., list[object]]


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import proof

    return proof


@pytest.fixture
def plan_of(proof: ModuleType, tmp_path: Path) -> Plan:
    """plan_of(work, ...): phases 0, 1, ... whose scripts do this work with `phase`, of which each has a minute."""

    def plan(*works: str) -> list[object]:
        phases = []
        for number, work in enumerate(works):
            script = tmp_path / f"fake_{number}.py"
            script.write_text(
                f"import sys, time\nsys.path.insert(0, {str(FOLDER)!r})\nfrom measurements import Value, run_phase\n"
                f"def run(phase):\n    {work}\nrun_phase(run)\n"
            )
            phases.append(proof.Planned(number, f"fake {number}", script, 60))
        return phases

    return plan


def settings(proof: ModuleType, tmp_path: Path, out: str = "out", **changes: object) -> object:
    return proof.Settings(tmp_path / out, tmp_path / "work", **changes)


def lines_of(tmp_path: Path, out: str = "out") -> dict[str, dict]:
    lines = [json.loads(line) for line in (tmp_path / out / "proof.jsonl").read_text().splitlines()]
    return {f"{line['phase']} {line['name']}": line for line in lines}


def run_quickly(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, str(FOLDER / "proof.py"), "--quick", "--out", str(tmp_path / "out"), "--work",
        str(tmp_path / "work"), "--budget", "3000", *options,
    ]  # fmt: skip
    return subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True)


def assert_all_is_well(tmp_path: Path, done: subprocess.CompletedProcess[str], phases: set[int]) -> None:
    logs = (tmp_path / "out" / "logs.txt").read_text()
    assert done.returncode == 0, done.stdout + logs
    lines = lines_of(tmp_path)
    assert {line["phase"] for line in lines.values()} == phases
    assert all(list(line) == KEYS and line["value"] is not None for line in lines.values())
    report = (tmp_path / "out" / "proof.md").read_text()
    assert all(f"| {line['name']} |" in report for line in lines.values())
    assert len(done.stdout.split("failed: nothing\n")[-1].splitlines()) <= 60


def test_a_phase_runs_on_a_cpu_and_is_not_repeated(tmp_path: Path) -> None:
    assert_all_is_well(tmp_path, run_quickly(tmp_path, "--phases", "0"), {0})
    lines = lines_of(tmp_path)
    again = run_quickly(tmp_path, "--phases", "0", "--resume", str(tmp_path / "out" / "proof.jsonl"))
    assert again.returncode == 0 and "at most" not in again.stdout  # no phase was begun
    assert lines_of(tmp_path) == lines


@pytest.mark.slow
def test_all_phases_run_on_a_cpu(tmp_path: Path) -> None:
    assert_all_is_well(tmp_path, run_quickly(tmp_path), set(range(8)))


def test_a_phase_that_hangs_is_ended_by_its_limit_and_the_next_begins(
    proof: ModuleType, plan_of: Plan, tmp_path: Path
) -> None:
    hanging, next_one = plan_of("time.sleep(10**6)", 'phase.measure("figure", "s", lambda: 3.0, "<= 4")')
    assert not proof.run_proof(settings(proof, tmp_path), [dataclasses.replace(hanging, limit=1), next_one])
    lines = lines_of(tmp_path)
    whole = lines["0 the phase as a whole"]
    assert whole["details"]["ending"] == "late" and whole["passed"] is False and whole["target"] == "<= 1"
    assert (lines["1 figure"]["value"], lines["1 figure"]["passed"]) == (3, True)
    assert lines["1 the phase as a whole"]["passed"]


def test_a_phase_or_a_measurement_that_fails_is_noted_and_the_rest_goes_on(
    proof: ModuleType, plan_of: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(
        "raise SystemExit(3)",
        'phase.measure("zero", "s", lambda: 1 / 0); phase.measure("slow", "ms", lambda: Value(5, {"n": 1}), "<= 4")',
        'phase.measure("no time", "s", lambda: 1, needs_seconds=10**6)',
    )
    assert not proof.run_proof(settings(proof, tmp_path), plan)
    lines = lines_of(tmp_path)
    assert lines["0 the phase as a whole"]["details"]["ending"] == "failed with status 3"
    assert lines["1 zero"]["value"] is None and lines["1 zero"]["details"] == {
        "error": "ZeroDivisionError: division by zero"
    }
    assert (lines["1 slow"]["value"], lines["1 slow"]["passed"], lines["1 slow"]["details"]) == (5, False, {"n": 1})
    assert lines["1 the phase as a whole"]["details"]["failed"] == ["zero"]
    assert "needed" in lines["2 no time"]["details"]["error"]
    assert "ZeroDivisionError" in (tmp_path / "out" / "logs.txt").read_text()
    table = capsys.readouterr().out.splitlines()
    assert any(line.startswith("1 slow") and line.endswith("5 ms              <= 4 NO") for line in table)


def test_what_is_measured_is_kept_and_what_failed_is_tried_again(
    proof: ModuleType, plan_of: Plan, tmp_path: Path
) -> None:
    work = (
        'phase.measure("first", "s", lambda: float(open("first").read())); '
        'phase.measure("second", "s", lambda: float(open("second").read()))'
    )
    plan = plan_of(work.replace('open("', f'open("{tmp_path}/'), 'phase.measure("other", "s", lambda: 7)')
    (tmp_path / "first").write_text("1")
    assert not proof.run_proof(settings(proof, tmp_path, phases=(0,)), plan)
    assert lines_of(tmp_path)["0 second"]["value"] is None and "1 other" not in lines_of(tmp_path)

    for name in ("first", "second"):
        (tmp_path / name).write_text("2")
    earlier = tmp_path / "out" / "proof.jsonl"
    assert proof.run_proof(settings(proof, tmp_path, out="again", resume=earlier), plan)
    lines = lines_of(tmp_path, "again")
    assert [lines[name]["value"] for name in ("0 first", "0 second", "1 other")] == [1, 2, 7]
    written = (tmp_path / "again" / "proof.jsonl").read_text()
    assert written.count('"first"') == written.count('"second"') == 1  # what had failed is gone


def test_without_time_a_phase_is_not_begun(
    proof: ModuleType, plan_of: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of('phase.measure("figure", "s", lambda: 3)')
    assert not proof.run_proof(settings(proof, tmp_path, budget=proof.ENDING_SECONDS + 1), plan)
    assert "s are left, not begun" in capsys.readouterr().out
    assert not (tmp_path / "out" / "proof.jsonl").exists()


def test_what_is_timed_on_a_gpu_is_a_named_configuration_with_the_right_inputs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With --quick each recipe's first configuration stands in for it."""
    monkeypatch.syspath_prepend(FOLDER)
    import steps
    import vision_transformers
    from loading import PAPER_LOOP
    from measurements import Phase
    from recipe_loops import configured, load_recipe

    phase = Phase(3, tmp_path / "none.jsonl", tmp_path, quick=False, ends_at=0.0)
    for method in (steps.SIE_256, steps.SIE_128, steps.EQUICAPS_256, steps.SEQ_JEPA_128, steps.SIMCLR_224,
                   steps.MOCO_224, steps.SIMCLR_64):  # fmt: skip
        config = method.config(quick=False)
        assert config.image_size == method.image_size
        if hasattr(config, "observed_views"):
            assert (method.views, method.actions) == (config.observed_views + 1, (config.observed_views, 4))
        assert not method.actions or config.actions == ("rotation",)
    assert 2e9 < steps.SIE_256.multiplications(phase) < 4e9
    assert {name for name, means in steps.OF_SIE.items() if means.as_runs} == set(list(steps.OF_SIE)[-2:])
    assert configured(load_recipe("sie"), PAPER_LOOP).encoder == "sie_resnet18"
    _, contestants = vision_transformers.transformers(phase)
    names = {vision_transformers.DENSE, vision_transformers.OCTIC, vision_transformers.HYBRID}
    assert contestants.keys() >= names


def test_the_limits_fit_what_one_machine_is_lent_for(proof: ModuleType) -> None:
    """A call takes at most 600 seconds, of which a second one may use some, and most phases end before their limits."""
    assert [planned.number for planned in proof.PLAN] == list(range(8))
    assert all(planned.script.is_file() for planned in proof.PLAN)
    assert sum(planned.limit for planned in proof.PLAN) <= 800


def test_the_table_has_at_most_sixty_lines_and_begins_with_what_missed(proof: ModuleType) -> None:
    from measurements import Measurement

    measurements = [Measurement(3, f"m{n}", n, "s", ">= 99" if n > 90 else None, n >= 99 if n > 90 else None, 0.1)
                    for n in range(100)]  # fmt: skip
    table = proof.table(measurements)
    assert len(table) == 60 and all(len(line) <= 100 for line in table)
    assert table[0].startswith("3 m91 ") and table[0].endswith(" NO") and table[8].endswith(" yes")
    assert table[-2:] == ["and 42 more in proof.md", "1 passed, 8 did not, 91 have no target"]


def test_outcomes_are_read_from_pytests_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from cuda_tests import outcomes

    alone = "tests/test_a.py::test_b[cpu-x y] PASSED     [ 17%]\ntests/test_a.py::test_c FAILED   [ 20%]\n"
    assert outcomes(alone) == {"tests/test_a.py::test_b[cpu-x y]": "PASSED", "tests/test_a.py::test_c": "FAILED"}
    beside = "[gw3] [ 12%] PASSED tests/test_a.py::test_b[cuda-x y] \n[gw0] [ 13%] ERROR tests/test_a.py::test_c \n"
    assert outcomes(beside) == {"tests/test_a.py::test_b[cuda-x y]": "PASSED", "tests/test_a.py::test_c": "ERROR"}
