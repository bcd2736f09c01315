"""What ``predict`` writes never takes the place of something else."""

import json
import os
import re
import sys

import numpy as np
import pytest

from otus.data.image_writing import write_image
from otus.data.images import read_image
from otus.errors import UsageError
from otus.inference.prediction import Prediction
from otus.reports.predictions import PredictionFolder
from otus.structures import Categories, Instances

OWLS = Categories(("owl",))


def prediction(name: str, shade: int = 0) -> Prediction:
    image = np.full((60, 80, 3), shade, np.uint8)
    found = Instances(np.array([[1.0, 2, 5, 6]]), [0], (60, 80), OWLS, scores=np.array([0.9]))
    return Prediction(name, image, found, {"network": 1.0})


def test_images_of_one_name_are_numbered_without_meeting_others(tmp_path):
    names = ["s1/a.jpg", "s2/a.jpg", "s2/a-2.jpg", "s3/A.png", "s4/a-2.png"]
    with PredictionFolder(tmp_path, categories=OWLS) as folder:
        for shade, name in enumerate(names):
            folder.add(prediction(name, shade=50 * shade))
    assert [path.name for path in folder.written] == ["a.jpg", "a-2.jpg", "a-2-2.jpg", "A-3.jpg", "a-2-3.jpg"]
    corners = [int(read_image(path)[-1, -1].mean()) for path in folder.written]
    assert corners == pytest.approx([50 * shade for shade in range(len(names))], abs=8)


@pytest.mark.parametrize("sources", [["same/owl.jpg"], ["other/a.jpg", "same/a.png"], ["same/a.png", "link/owl.jpg"]])
def test_a_folder_of_photographs_is_refused_where_one_would_be_lost(tmp_path, sources):
    for name in ("same/owl.jpg", "same/a.jpg", "same/a.png", "other/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_image(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
    os.symlink(tmp_path / "same", tmp_path / "link")
    folder = PredictionFolder(tmp_path / "same", categories=OWLS)
    with pytest.raises(UsageError, match=r"--out: .*same holds images to predict on.*(owl|a)\.jpg"):
        folder.refuse_sources([tmp_path / name for name in sources])
    PredictionFolder(tmp_path / "new", categories=OWLS).refuse_sources([tmp_path / name for name in sources])
    folder.refuse_sources([tmp_path / "other/owl.jpg"])  # no image to predict on lies there


def test_beside_photographs_what_is_new_may_be_written_and_pages_are_kept(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "index.html").write_text("mine")
    PredictionFolder(tmp_path, categories=OWLS).refuse_sources([tmp_path / "a.png"])
    with pytest.raises(UsageError, match=r"index\.html"):
        PredictionFolder(tmp_path, categories=OWLS, page=True).refuse_sources([tmp_path / "a.png"])


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names of files are text there")
def test_names_that_are_no_text_are_spelt_out(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    with PredictionFolder(tmp_path, categories=OWLS, page=True) as folder:
        folder.add(prediction(f"photos/{name}"))
    assert [os.fsencode(path.name) for path in folder.written] == [b"caf\xe9.jpg"]
    (record,) = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    assert record["file_name"] == "photos/caf\\udce9.png"
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.search(r'src="caf%E9\.jpg"', page)
    assert "caf\\udce9.png: 1 owl" in page
