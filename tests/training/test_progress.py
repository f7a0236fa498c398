"""What a run shows: plain lines in a log file, one live line on a terminal, nothing from other processes."""

import dataclasses
import io

import pytest
from rich.console import Console
from rich.text import Text

from ssl_equi.runtime import progress
from ssl_equi.runtime.progress import PLAIN_LINE_EVERY_SECONDS, LiveProgress, rough_duration
from ssl_equi.training.log import Speed, TrainingProgress

SPEED = Speed(
    images_per_second=1234.5, waiting_share=0.034, window_seconds=10.0, read_thread_seconds=0.2,
    decode_thread_seconds=9.0, augment_seconds=0.8, records_skipped=0,
)  # fmt: skip


class Clock:
    """Time that passes when the test says so; like the real one, it doesn't begin at zero."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


def told_and_shown(out: str) -> tuple[list[str], list[str]]:
    """How long it takes, and the lines of progress."""
    lines = out.splitlines()
    return [line for line in lines if line.startswith("about")], [line for line in lines if line.startswith("sie")]


def train(clock: Clock, seconds_a_step: float, total_steps: int, first_step: int = 0, enabled: bool = True) -> None:
    with TrainingProgress("sie", first_step, total_steps, enabled, "16 probes") as shown:
        for step in range(first_step, total_steps):
            clock.now += seconds_a_step
            shown.advance(step + 1)
            shown.report({"loss": 10.0 / (step + 1)}, SPEED)


def test_a_log_file_gets_the_first_line_at_once_then_one_every_20_seconds_and_the_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Clock(monkeypatch), seconds_a_step=1.5, total_steps=50)
    captured = capsys.readouterr()
    told, lines = told_and_shown(captured.out)
    assert told == ["about 68 seconds of training, then 16 probes"], "the first step isn't measured, the next four are"
    steps = [int(line.split()[1].split("/")[0]) for line in lines]
    assert steps == [1, 15, 29, 43, 50], "1.5 s a step: 14 steps are the first to take 20 s"
    assert PLAIN_LINE_EVERY_SECONDS == 20
    figures = "1,234 img/s · 3% wait · data work: 2% read, 90% decode, 8% augment"
    assert lines[0] == f"sie 1/50 · loss 10.000 · {figures} · 1.2 min left"
    assert lines[-1] == f"sie 50/50 · loss 0.200 · {figures} · 0.0 min left"
    assert "\x1b" not in captured.out and captured.err == ""


def test_a_machine_that_was_just_started_gets_its_first_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock may begin at zero with the machine."""
    clock = Clock(monkeypatch)
    clock.now = 0.0
    train(clock, seconds_a_step=0.1, total_steps=5)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["1/5", "5/5"]


def test_the_time_left_of_a_resumed_run_counts_its_own_steps_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Clock(monkeypatch), seconds_a_step=60.0, total_steps=100, first_step=90)
    told, lines = told_and_shown(capsys.readouterr().out)
    assert lines[0].endswith("9.0 min left") and told == ["about 6 minutes of training, then 16 probes"]


def test_the_first_step_which_is_slow_says_nothing_of_how_long_a_run_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with TrainingProgress("sie", 0, 1000, enabled=True, then="the export") as shown:
        for step, seconds in enumerate([300.0] + [2.0] * 10):
            clock.now += seconds
            shown.advance(step + 1)
            assert (capsys.readouterr().out != "") == (step == 3), "three measured steps"
    with TrainingProgress("sie", 0, 20, enabled=True) as shown:
        for step in range(20):
            clock.now += 0.3
            shown.advance(step + 1)
    assert capsys.readouterr().out == "", "less than 5 seconds are left when it can be told"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.2, "5 seconds"), (119, "119 seconds"), (360, "6 minutes"), (7199, "120 minutes"), (9000, "2 hours"),
     (86_400, "24 hours"), (260_000, "3 days")],
)  # fmt: skip
def test_a_time_is_told_in_words(seconds: float, text: str) -> None:
    assert rough_duration(seconds) == text


def test_pieces_of_work_get_a_line_every_20_seconds_in_a_log_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    for enabled in (True, False):
        with LiveProgress(enabled) as shown:
            for number in range(1, 8):
                shown.show("probing", number, 7, f"task {number} of 7: knn")
                clock.now += 6.0
        assert capsys.readouterr().out == ("probing task 5 of 7: knn\n" if enabled else "")


def test_pieces_of_work_follow_each_other_in_one_line_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda: Console(file=screen, force_terminal=True, width=80))
    with LiveProgress() as shown:
        assert shown.bar is not None
        shown.show("encoding sie: train", 4608, 23_040, "4,608/23,040 views", timed=True)
        shown.bar.refresh()
        shown.show("probing", 3, 14, "task 3 of 14: relative_rotation")
        shown.bar.refresh()
        shown.show("drawing the report")
        shown.bar.refresh()
    frames = [Text.from_ansi(frame).plain.rstrip() for frame in screen.getvalue().replace("\n", "\r").split("\r")]
    shown_lines = list(dict.fromkeys(frame for frame in frames if frame))
    assert all(len(line) <= 80 for line in shown_lines) and screen.getvalue().count("\n") == 1
    texts = ("4,608/23,040 views", "task 3 of 14: relative_rotation", "drawing the report")
    assert [next(text for text in texts if text in line) for line in shown_lines] == list(texts)


def test_other_processes_show_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    train(Clock(monkeypatch), seconds_a_step=30.0, total_steps=5, enabled=False)
    assert capsys.readouterr() == ("", "")


def last_frame(
    monkeypatch: pytest.MonkeyPatch, label: str, step: int, total: int, losses: dict[str, float], speed: Speed
) -> str:
    """What stands on a terminal of 80 columns at the end."""
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda: Console(file=screen, force_terminal=True, width=80))
    with TrainingProgress(label, 0, total, enabled=True) as shown:
        shown.advance(step)
        shown.report(losses, speed)
        assert shown.live.bar is not None
        shown.live.bar.refresh()
    frames = [Text.from_ansi(frame).plain.rstrip() for frame in screen.getvalue().replace("\n", "\r").split("\r")]
    lines = [frame for frame in frames if frame]
    assert lines and max(len(line) for line in lines) <= 80
    assert screen.getvalue().count("\n") == 1, "it is redrawn in its place"
    return lines[-1]


@pytest.mark.parametrize(
    ("label", "step", "total_steps", "losses", "figures", "numbers"),
    [
        ("sie", 1, 3520, 14.182, {"waiting_share": 0.0}, "loss 14.182 · 1,234 img/s · 0% wait"),
        ("sie", 1, 3520, 14.182, {"waiting_share": 0.34}, "loss 14.182 · 1,234 img/s · 34% wait to decode"),
        ("sie", 1, 3520, 14.182, {"waiting_share": 0.34, "read_thread_seconds": 9.1},
         "loss 14.182 · 1,234 img/s · 34% wait to read"),
        ("sie", 1, 3520, 14.182, {"waiting_share": 0.34, "records_skipped": 12},
         "loss 14.182 · 34% wait · 12 skipped"),
        ("sie", 1, 3520, {"loss": 14.182, "action_gain": 0.0123}, {"waiting_share": 0.0},
         "loss 14.182 · action gain 1.2% · 1,234 img/s"),
        ("sen", 1, 352, {"loss": 0.386, "action_gain": 0.0123}, {"waiting_share": 0.34},
         "loss 0.386 · 1,234 img/s · 34% wait to decode"),
        ("equicaps", 82000, 82000, 1234.567, {"waiting_share": 1.0, "images_per_second": 98765.0},
         "loss 1234.567 · 98,765 img/s · 100% wait"),
        ("seq_jepa_saccades", 82000, 82000, 1234.567, {"waiting_share": 1.0, "records_skipped": 7},
         "loss 1234.567 · 7 skipped"),
    ],
)  # fmt: skip
def test_on_a_terminal_one_line_of_80_columns_tells_as_much_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
    label: str,
    step: int,
    total_steps: int,
    losses: float | dict[str, float],
    figures: dict[str, float],
    numbers: str,
) -> None:
    """The widest numbers of a long run on a fast GPU are not cut off either."""
    losses = losses if isinstance(losses, dict) else {"loss": losses}
    last = last_frame(monkeypatch, label, step, total_steps, losses, dataclasses.replace(SPEED, **figures))
    assert last.startswith(label) and "…" not in last
    assert f"{step}/{total_steps} {numbers} " in last


def test_how_the_work_divides_is_left_out_where_nothing_was_measured() -> None:
    nothing = {"read_thread_seconds": 0.0, "decode_thread_seconds": 0.0, "augment_seconds": 0.0}
    assert dataclasses.replace(SPEED, **nothing).work_shares == {}
    assert SPEED.work_shares == pytest.approx({"read": 0.02, "decode": 0.9, "augment": 0.08})
