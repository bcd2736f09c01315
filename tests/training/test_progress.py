"""What is said of a run that nobody watches."""

from otus.training import progress
from otus.training.state import RunState


def test_without_a_terminal_there_is_a_line_each_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.TrainProgress()
    state = RunState(total_steps=400)
    for _ in range(4):
        now[0] += 25
        state.count_step({"class": 0.5}, seconds=25.0)
        shown.step(state, {"class": 0.5}, steps_per_epoch=100, pictures=8)
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("epoch 1, step 3: loss 0.500")
    assert "0.3 pictures/s" in lines[0]


def test_quiet_is_quiet(monkeypatch, capsys):
    shown = progress.TrainProgress(quiet=True)
    monkeypatch.setattr(progress.time, "monotonic", lambda: 1e9)
    state = RunState(total_steps=4)
    state.count_step({"class": 0.5}, seconds=1.0)
    shown.step(state, {"class": 0.5}, steps_per_epoch=4, pictures=8)
    assert capsys.readouterr().err == ""
