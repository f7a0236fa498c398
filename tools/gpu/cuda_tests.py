"""Phase 1: the tests marked `cuda`, several at a time; with --quick a few that run on the CPU, too."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from measurements import Phase, Value, process_environment, run_phase

ROOT = Path(__file__).parents[2]
SELECTION = ["-m", "cuda", "-n", "6", "--dist", "load", "--timeout", "60"]
QUICK_SELECTION = ["-k", "cpu and (sie or crop_flip)", "-m", "not slow and not cuda", "-n", "0"]
OPTIONS = ["-v", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib --strict-markers"]
FILE_OF_ALL = "tests/test_cuda.py"
OUTCOME = re.compile(
    r"^\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED) (tests/.+?) *$"
    r"|^(tests/\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b",
    re.MULTILINE,
)


def outcomes(output: str) -> dict[str, str]:
    """From a test's name to how it ended, of pytest's verbose lines with or without processes."""
    found = {}
    for match in OUTCOME.finditer(output):
        before, name_after, name_before, after = match.groups()
        found[name_after or name_before] = before or after
    return found


def other_files() -> list[str]:
    """Further files with tests so marked; collecting all others in every process would take half of the time."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    names = [str(file.relative_to(ROOT)) for file in files if "pytest.mark.cuda" in file.read_text()]
    return [name for name in names if name not in (FILE_OF_ALL, "tests/tools/test_gpu_proof.py")]


def run_tests(phase: Phase) -> Value:
    """The number of tests that pass.

    Raises:
        AssertionError: one doesn't, or none ran.
    """
    files = [FILE_OF_ALL] if phase.quick else [FILE_OF_ALL, *other_files()]
    selection = QUICK_SELECTION if phase.quick else SELECTION
    command = [sys.executable, "-m", "pytest", *OPTIONS, *selection, *files]
    late, log = False, phase.work / "pytest.log"
    with log.open("wb") as lines:
        process = subprocess.Popen(
            command, cwd=ROOT, env=process_environment(phase.quick), stdout=lines, stderr=subprocess.STDOUT
        )
        try:
            process.wait(max(5.0, phase.seconds_left()))
        except subprocess.TimeoutExpired:
            late = True
            process.kill()
    output = log.read_text(errors="replace")
    print(output, flush=True)
    found = outcomes(output)
    count = Counter(found.values())
    bad = [name for name, outcome in found.items() if outcome in ("FAILED", "ERROR")]
    assert count["PASSED"] and not bad and not late, f"{dict(count)}{', late' if late else ''}: {' '.join(bad)}"
    return Value(count["PASSED"], dict(count))


def run(phase: Phase) -> None:
    phase.measure("tests that pass", "tests", lambda: run_tests(phase), ">= 1")


if __name__ == "__main__":
    run_phase(run)
