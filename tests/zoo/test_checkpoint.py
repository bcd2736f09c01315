"""Checkpoints: round trips, atomic writing, and safe reading of weights of other libraries."""

import argparse
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from otus.errors import CheckpointError
from otus.structures import Categories
from otus.structures.categories import KeypointNames
from otus.zoo.checkpoint import (
    CheckpointHeader,
    checkpoint_part,
    find_prefixes,
    load_checkpoint,
    load_into,
    match_tensors,
    read_foreign,
    save_checkpoint,
    sub_state,
)

PERSON = KeypointNames(("nose", "left_eye", "right_eye"), skeleton=((0, 1), (0, 2)))
HEADER = CheckpointHeader(
    builder="mask_rcnn",
    arguments={"backbone": "resnet18", "levels": [2, 3], "threshold": 0.05, "score": None},
    categories=Categories(("person", "sky"), ids=(1, 90), is_thing=(True, False), keypoints=(("person", PERSON),)),
    preprocess={"short_side": 320, "mean": [0.485, 0.456, 0.406]},
    licence="Apache-2.0",
    training={"data": "räumlich", "hours": 1.5},
    extra={"epoch": 3},
)


def assert_same(one, other):
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert other[name].dtype == tensor.dtype
        assert torch.equal(other[name], tensor), name


def test_everything_comes_back(tmp_path):
    state = {
        "conv.weight": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "turned": torch.randn(3, 4).t(),
        "ema/conv.weight": torch.randn(4, 3, 5, 5).bfloat16(),
        "half": torch.randn(2).half(),
        "optimizer/0/step": torch.tensor(17.0),
        "rng/torch": torch.get_rng_state(),
        "count": torch.tensor(3),
        "flag": torch.tensor([True, False]),
        "nothing": torch.zeros(0, 4),
        "also nothing": torch.zeros(0, 4),
        "grad": torch.ones(2, requires_grad=True),
    }
    path = tmp_path / "new folder" / "last.safetensors"
    save_checkpoint(path, state, HEADER)
    loaded, header = load_checkpoint(path)
    assert_same(state, loaded)
    assert header == HEADER
    assert [file.name for file in path.parent.iterdir()] == ["last.safetensors"]
    assert list(checkpoint_part(loaded, "ema")) == ["conv.weight"]
    assert list(checkpoint_part(loaded, "optimizer")) == ["0/step"]
    assert "conv.weight" in checkpoint_part(loaded)
    assert not any("/" in name for name in checkpoint_part(loaded))


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path):
    big = torch.randn(100, 100)
    state = {"a": big, "b": big, "turned": big.t(), "rows": big[:3], "same rows": big[:3]}
    path = tmp_path / "tied.safetensors"
    save_checkpoint(path, state, CheckpointHeader())
    loaded, _ = load_checkpoint(path)
    assert_same(state, loaded)
    assert loaded["a"] is loaded["b"]
    assert set(load_file(path)) == {"a", "turned", "rows"}


def test_same_input_gives_the_same_bytes(tmp_path):
    state = {f"layer{i}.weight": torch.full((3,), float(i)) for i in range(20)}
    for name in ("one", "two"):
        save_checkpoint(tmp_path / name, state, HEADER)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


_names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=12)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        _names,
        st.tuples(
            st.lists(st.integers(0, 3), max_size=4),
            st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]),
        ),
        max_size=5,
    ),
    st.dictionaries(_names, _json, max_size=4),
)
def test_round_trip(tmp_path_factory, shapes, extra):
    path = tmp_path_factory.mktemp("round") / "c.safetensors"
    state = {name: torch.randint(0, 2, shape).to(dtype).mT if len(shape) > 1 else torch.ones(shape, dtype=dtype)
             for name, (shape, dtype) in shapes.items()}  # fmt: skip
    save_checkpoint(path, state, CheckpointHeader(extra=extra))
    loaded, header = load_checkpoint(path)
    assert_same(state, loaded)
    assert header == CheckpointHeader(extra=extra)


def test_header_that_is_not_json(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be encoded as JSON"):
        save_checkpoint(tmp_path / "c", {}, CheckpointHeader(extra={"torch": torch.zeros(1)}))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, {"a": torch.ones(3)}, CheckpointHeader())
    before = path.read_bytes()

    def full_disk(stage, content):
        with open(stage, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(path, {"a": torch.zeros(3)}, CheckpointHeader())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as a full disk would")
def test_a_really_full_disk_keeps_the_old_file(tmp_path):
    program = """
import resource, sys, torch
from otus.errors import CheckpointError
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
save_checkpoint(sys.argv[1], {"a": torch.ones(3)}, CheckpointHeader())
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(sys.argv[1], {"a": torch.zeros(1_000_000)}, CheckpointHeader())
except CheckpointError as error:
    print(error)
"""
    path = tmp_path / "last.safetensors"
    ended = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=120)
    assert "could not be written, an earlier file is kept" in ended.stdout, ended.stderr
    assert load_checkpoint(path)[0]["a"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="forks and kills")
def test_the_file_is_complete_if_the_process_is_killed(tmp_path):
    # One process that imports torch once and forks writers, each killed while it writes one checkpoint after another.
    program = """
import os, random, signal, sys, time, torch
from otus.zoo.checkpoint import CheckpointHeader, load_checkpoint, save_checkpoint
torch.set_num_threads(1)
path, moments = sys.argv[1], random.Random(5)
seen = set()
for round in range(20):
    writer = os.fork()
    if not writer:
        number = round * 10_000
        while True:
            number += 1
            save_checkpoint(path, {"a": torch.full((300_000,), float(number))}, CheckpointHeader(extra={"n": number}))
    time.sleep(moments.uniform(0.01, 0.1))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    if os.path.exists(path):
        state, header = load_checkpoint(path)
        assert torch.all(state["a"] == header.extra["n"]), header
        seen.add(header.extra["n"])
print(len(seen))
"""
    path = tmp_path / "last.safetensors"
    ended = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 5
    for leftover in tmp_path.glob(".*"):
        os.utime(leftover, (0, 0))
    save_checkpoint(path, {"a": torch.ones(3)}, CheckpointHeader())
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_not_checkpoints_of_otus(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(CheckpointError, match=r"c\.safetensors: there is no such file"):
        load_checkpoint(path)
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="not the header of an Otus checkpoint"):
        load_checkpoint(path)
    for metadata, message in (
        ('{"version": 2, "header": {}}', "format 2, this version of Otus reads up to 1"),
        ("{}", "format None"),
        ("[1", "header is damaged"),
        ('{"version": 1}', "header is damaged"),
        ('{"version": 1, "header": {"arguments": 3}}', r"header is damaged.*\$\.header\.arguments"),
        ('{"version": 1, "header": {"categories": {"names": ["a", "a"]}}}', "header is damaged.*more than once"),
        ('{"version": 1, "header": {}, "aliases": {"b": "absent"}}', "header is damaged.*absent"),
    ):
        save_file({"a": torch.ones(3)}, path, metadata={"otus": metadata})
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_raise_only_checkpoint_errors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "c.safetensors"
    save_checkpoint(path, {"a": torch.ones(3), "b": torch.ones(2, 2)}, HEADER)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for read in (load_checkpoint, read_foreign):
        try:
            read(path)
        except CheckpointError as error:
            assert "c.safetensors" in str(error)  # noqa: PT017


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_load_into_all_or_nothing(tmp_path):
    module, other = small_model(), small_model()
    load_into(module, other.state_dict(), source="w.pth")
    assert_same(module.state_dict(), other.state_dict())

    wrong = small_model().state_dict()
    del wrong["0.weight"], wrong["0.bias"]
    wrong["2.weight"] = torch.zeros(5, 4, 1, 1)
    wrong["head.weight"] = torch.zeros(7)
    for strict in (True, False):
        with pytest.raises(CheckpointError) as error:
            load_into(module, wrong, source="w.pth", strict=strict)
        message = str(error.value)
        assert "w.pth does not fit Sequential (nothing was loaded; 6 tensors would fit)" in message
        assert "1 extra, e.g. head.weight (7,)" in message
        assert "1 of another shape, e.g. 2.weight: expected (2, 4, 1, 1), got (5, 4, 1, 1)" in message
        assert ("2 missing, e.g. 0.weight (4, 3, 3, 3), 0.bias (4,)" in message) is strict
        assert_same(module.state_dict(), other.state_dict())


def test_only_the_first_few_are_listed():
    with pytest.raises(CheckpointError) as error:
        load_into(small_model(), models.resnet18().state_dict(), source="resnet18.pth")
    assert "102 extra" in str(error.value)
    assert len(str(error.value)) < 600


def test_counters_of_norms_are_never_missed():
    module = small_model()
    state = small_model().state_dict()
    counter = state.pop("1.num_batches_tracked")
    load_into(module, state, source="old.pth")
    frozen = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.Conv2d(4, 2, 1))
    load_into(frozen, state | {"1.num_batches_tracked": counter}, source="new.pth")
    assert torch.equal(frozen[0].weight, state["0.weight"])


def test_values_take_the_dtype_of_the_module():
    module = small_model()
    state = {name: tensor.half() for name, tensor in small_model().state_dict().items()}
    load_into(module, state, source="half.safetensors")
    assert module[0].weight.dtype == torch.float32
    assert torch.equal(module[0].weight, state["0.weight"].float())


def test_match_tensors():
    module = small_model()
    state = small_model().state_dict()
    state["2.weight"] = torch.zeros(5, 4, 1, 1)
    del state["0.bias"]
    state["extra"] = torch.zeros(1)
    fits, not_loaded = match_tensors(module, state)
    assert set(fits) == set(module.state_dict()) - {"2.weight", "0.bias"}
    assert [str(one) for one in not_loaded] == [
        "missing: 0.bias (4,)",
        "extra: extra (1,)",
        "of another shape: 2.weight: expected (2, 4, 1, 1), got (5, 4, 1, 1)",
    ]
    bias = module[0].bias.clone()
    load_into(module, fits, source="other", strict=False)
    assert torch.equal(module[0].weight, state["0.weight"])
    assert torch.equal(module[0].bias, bias)


STATE = OrderedDict(a=torch.arange(3.0), b=torch.ones(2, 2, dtype=torch.float16))
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        {"state_dict": STATE, "optimizer": {"lr": 0.1}},
        {f"module.{name}": tensor for name, tensor in STATE.items()},
        {"model": {f"module.{name}": nn.Parameter(tensor) for name, tensor in STATE.items()}},
        {"state_dict": {f"model._orig_mod.{name}": tensor for name, tensor in STATE.items()}, "epoch": 3},
        {"ema": {"module": STATE, "updates": 7}, "model": OTHER, "optimizer": {"state": {0: OTHER}}},
        {"ema_state_dict": {f"ema.module.{name}": tensor for name, tensor in STATE.items()}, "state_dict": OTHER},
        {"checkpoint": {"weights": STATE}, "schema": {"a": torch.zeros(1)}},
        {"net": STATE, "ema": {"a": torch.zeros(3)}},  # that lacks a tensor
    ],
)
def test_weights_of_others(tmp_path, content, zipped):
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_same(STATE, read_foreign(path))


def test_safetensors_of_others(tmp_path):
    save_file({f"module.{name}": tensor for name, tensor in STATE.items()}, tmp_path / "w.bin")
    assert_same(STATE, read_foreign(tmp_path / "w.bin"))


class Malicious:
    """Creates a file if it is unpickled by an unsafe reader."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_with_code_is_not_run(tmp_path, protocol):
    victim, path = tmp_path / "victim", tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"a": Malicious(victim)}, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read_foreign(path)
    assert not victim.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_code_is_not_run(tmp_path, zipped):
    victim, path = tmp_path / "victim", tmp_path / "w.pth"
    torch.save({"model": STATE, "hook": Malicious(victim)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"w\.pth: refused, .*io\.open.*none of it was run"):
        read_foreign(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)["hook"].close()
    assert victim.exists()  # so the trap was a trap


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(2, 2), r"refused.*torch\.nn\.modules\.linear\.Linear"),
        ({"a": np.zeros(2)}, "refused.*numpy"),
        ({"a": 3}, "expected tensors by name, got int under 'a'"),
        ({3: torch.zeros(1)}, "expected tensors by name, got Tensor under 3"),
        ([torch.zeros(1)], "got list"),
        ({}, "got dict without tensors"),
        (torch.zeros(3), "got Tensor"),
    ],
)
def test_files_of_other_things(tmp_path, content, message):
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_foreign(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a text",
        b"<!DOCTYPE html><html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"PK\x03\x04 no archive",
        b"\x80\x02garbage",
        b"\x80",
        b"\xff" * 1000,
        b"\x00" * 1000,
        (2**60).to_bytes(8, "little") + b"{}",
        np.random.default_rng(0).bytes(5000),
    ],
)
def test_files_of_nothing(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.pth: is "):
        read_foreign(path)


def write_zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "text")


def test_errors_name_the_type_of_other_files(tmp_path):
    write_zip(tmp_path / "photos.pth", "a.jpg", "b.jpg")
    write_zip(tmp_path / "empty.pth")
    np.savez(tmp_path / "numpy.npz", a=np.zeros(2))
    write_zip(tmp_path / "script.pt", "net/data.pkl", "net/constants.pkl", "net/code/__torch__.py")
    (tmp_path / "page.pth").write_bytes(b"\n <!doctype HTML><title>Sign in</title>")
    (tmp_path / "pointer.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    (tmp_path / "nothing.pth").write_bytes(b"")
    for name, message in (
        ("photos.pth", r"zip archive of other files \(a\.jpg, b\.jpg\)"),
        ("empty.pth", r"zip archive of other files \(nothing\)"),
        ("numpy.npz", r"zip archive of other files \(a\.npy\)"),
        ("script.pt", r"TorchScript program.*state_dict"),
        ("page.pth", "a web page, not weights"),
        ("pointer.pth", "Git LFS pointer.*git lfs pull"),
        ("nothing.pth", "is empty"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}: is .*{message}"):
            read_foreign(tmp_path / name)


def test_prefixes_the_fullest_first():
    state = dict.fromkeys(("model.a.w", "model.b.w", "ema.a.w", "ema.b.w", "loss.w", "x.a.w"), torch.zeros(1))
    assert find_prefixes(state, ["a.w", "b.w"]) == ["ema.", "model.", "x."]
    assert find_prefixes(state | {"a.w": torch.zeros(1), "b.w": torch.ones(1)}, ["a.w", "b.w"])[0] == ""
    assert sub_state(state, "ema.").keys() == {"a.w", "b.w"}
    assert find_prefixes(state, ["c.w"]) == []


def test_truncated_weights_are_errors(tmp_path):
    path = tmp_path / "w.pth"
    for zipped in (True, False):
        torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for length in (3, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=r"w\.pth: (is damaged|refused)"):
                read_foreign(path)
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_foreign(tmp_path)


def test_weights_that_are_not_finite_are_errors():
    module = torch.nn.Linear(2, 2)
    before = module.weight.detach().clone()
    state = {"weight": torch.tensor([[1.0, float("nan")], [0, 0]]), "bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"1 tensors have values that are not finite, e\.g\. weight"):
        load_into(module, state, source="file")
    assert torch.equal(module.weight, before)
