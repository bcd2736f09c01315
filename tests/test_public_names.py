"""What ``otus`` exports: every name is there at run time, for type checkers and in ``help``, and importing it stays
light."""

import ast
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import otus

PACKAGE = Path(otus.__file__).parents[1]
EXPECTED = {
    *("load", "train", "evaluate", "compare", "open_dataset", "list_models"),
    *("Predictor", "Prediction", "Tiles", "Preprocess", "Postprocess", "TrainSettings", "TrainedModel"),
    *("EvaluationReport", "Comparison", "Dataset", "Sample", "Categories", "KeypointNames", "BoxFormat"),
    *("Instances", "Objects", "Masks", "SemanticMap", "PanopticMap", "Classification", "Prompt", "MaskCandidates"),
    *("OtusError", "UsageError", "ShapeError", "DataError", "ImageError", "CheckpointError", "FetchError"),
    *("TrainingError", "ExportError", "MissingExtraError", "__version__"),
}


def test_the_exported_names_are_these_and_each_is_what_it_says():
    assert set(otus.__all__) == EXPECTED
    assert dir(otus) == sorted(EXPECTED)
    for name in EXPECTED - {"__version__"}:
        assert getattr(otus, name).__name__ == name
    with pytest.raises(AttributeError, match="'otus' has no attribute 'no_such_name'"):
        _ = otus.no_such_name


def test_every_error_of_the_house_is_exported():
    from otus import errors

    raised = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, otus.OtusError)}
    assert raised <= EXPECTED


def test_type_checkers_import_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(otus.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("otus.")]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert seen == otus._MODULE_OF


def test_mypy_knows_the_types_of_the_exported_names(tmp_path):
    pytest.importorskip("mypy")
    lines = ["import otus", *(f"{name} = otus.{name}" for name in sorted(EXPECTED - {"__version__"}))]
    lines += ["reveal_type(otus.load())", "reveal_type(otus.open_dataset('photos')[0])"]
    snippet = tmp_path / "snippet.py"
    snippet.write_text("\n".join(lines) + "\n")
    config = tmp_path / "mypy.ini"
    others = ("torch", "torchvision", "numpy", "matplotlib", "scipy", "pydantic", "rich", "PIL", "jaxtyping", "msgspec")
    skipped = "".join(
        f"[mypy-{package}.*]\nfollow_imports = skip\n" for package in others
    )  # ours alone: a tenth of the time
    config.write_text(f"[mypy]\nfollow_imports = silent\nignore_missing_imports = True\n{skipped}")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path), str(snippet)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"MYPYPATH": str(PACKAGE), "PATH": ""},
    )
    assert 'Revealed type is "otus.inference.predictor.Predictor"' in done.stdout, done.stdout + done.stderr
    assert 'Revealed type is "otus.data.sample.Sample"' in done.stdout
    assert "has no attribute" not in done.stdout


def test_help_lists_the_public_names():
    text = pydoc.render_doc(otus, renderer=pydoc.plaintext)
    assert "from the sliding window to Segment Anything" in text
    for name in EXPECTED - {"__version__"}:
        assert name in text
    assert "Return the names that :func:`otus.load` and :func:`otus.train` take" in text


def test_import_otus_is_light():
    heavy = "{'torch', 'numpy', 'matplotlib', 'pydantic', 'PIL', 'typer'}"
    code = f"import sys, otus; dir(otus); otus.OtusError; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
