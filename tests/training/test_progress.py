"""The progress display, with and without a terminal."""

import io

import pytest
from rich.console import Console

from otus.training import progress
from otus.training.state import RunState


def test_without_a_terminal_there_is_a_line_each_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.TrainProgress()
    state = RunState(total_steps=400)
    for _ in range(4):
        now[0] += 25
        state.record_step({"class": 0.5}, seconds=25.0)
        shown.step(state, {"class": 0.5}, steps_per_epoch=100, images=8)
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("epoch 1/4, step 3: loss 0.500")
    assert "0.3 images/s" in lines[0]


def test_quiet_is_quiet(monkeypatch, capsys):
    shown = progress.TrainProgress(quiet=True)
    monkeypatch.setattr(progress.time, "monotonic", lambda: 1e9)
    state = RunState(total_steps=4)
    state.record_step({"class": 0.5}, seconds=1.0)
    shown.step(state, {"class": 0.5}, steps_per_epoch=4, images=8)
    assert capsys.readouterr().err == ""


LOSSES = {"objectness": 0.51, "proposal_box": 0.42, "class": 1.123, "box": 0.77, "mask": 0.691}


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_bar_shows_what_matters_at_every_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    terminal = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    shown = progress.TrainProgress()
    state = RunState(total_steps=1250, step=1117, seconds_of_steps=36 * 3600.0, epoch_s=9.0)
    shown.step(state, LOSSES, steps_per_epoch=100, images=8000)
    (line,) = terminal.render_lines(shown._bar.get_renderable(), pad=False)
    text = "".join(segment.text for segment in line)
    assert text.startswith("epoch 12/13 \u2501")
    for part in ("loss 3.514", "69.0 images/s", "4:17:11 left"):
        assert part in text
    assert "\u2026" not in text
    assert ("0% waiting" in text) == (width >= 100)
    assert ("mask 0.691" in text) == (width == 200)


@pytest.mark.parametrize(
    ("figures", "name"),
    [
        ({"bbox/AP": 0.4, "segm/AP": 0.3}, "mask AP 0.250"),
        ({"bbox/AP": 0.4}, "box AP 0.250"),
        ({"bbox/AP": 0.4, "keypoints/AP": 0.3}, "keypoint AP 0.250"),
        ({"classification/top1": 0.25}, "top-1 accuracy 0.250"),
    ],
)
def test_the_line_of_an_epoch_names_its_metric(capsys, figures: dict[str, float], name: str) -> None:
    row = {
        "epoch": 11,
        "loss": 1.0,
        "score": 0.25,
        "images_per_s": 2.0,
        "waiting_share": 0.0,
        "hours": 0.1,
        **figures,
    }
    progress.TrainProgress().epoch(row, total_epochs=11)
    assert (
        capsys.readouterr().err == f"epoch 11/11: loss 1.0000 · {name} · 2.0 images/s · 0% waiting · 0:06:00 so far\n"
    )
