"""The command ``otus``: imports, output streams, exit codes."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "numpy", "pydantic", "numba", "matplotlib", "PIL")


def otus(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "otus", *map(str, arguments)], capture_output=True, text=True, timeout=120, **options
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys, otus.cli\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(otus.cli.app, ['--help']).exit_code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_import_is_light_and_silent():
    code = "import sys, otus; otus.OtusError; print('torch' in sys.modules, otus.__version__)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[0] == "False", done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_the_verbs(arguments):
    done = otus(*arguments)
    for verb in ("evaluate", "convert", "doctor", "explain"):
        assert verb in done.stdout + done.stderr


def test_a_wrong_command_ends_with_2():
    assert otus("no-such-verb").returncode == 2
    assert otus("doctor").returncode == 2
    assert otus("doctor", ".", "--no-such-option").returncode == 2


@pytest.mark.parametrize("verb", [["doctor"], ["evaluate", "--predictions", "p.json", "--data"]])
def test_a_missing_path_is_an_error_that_names_it(verb, tmp_path):
    done = otus(*verb, tmp_path / "nowhere")
    assert done.returncode in (1, 2)
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_public_names_are_there():
    import otus

    for name in otus.__all__:
        assert getattr(otus, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = otus.no_such_name


@pytest.mark.parametrize("option", ["--out", "--name"])
def test_a_resumed_run_has_its_folder(option, tmp_path):
    done = otus("train", "--resume", tmp_path, option, "other")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--out and --name are for a new run" in done.stderr


def test_names_in_messages_are_not_interpreted_as_markup(capsys):
    from otus.training.progress import TrainProgress

    TrainProgress().log("left out: [/bold] of pa[old]th :owl:")
    assert capsys.readouterr().err == "left out: [/bold] of pa[old]th :owl:\n"
