"""Boxes of one field as a list: what is read, and what is said of a wrong row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cytosae import CytosaeError
from cytosae.cells import box_windows, read_boxes


@pytest.mark.parametrize("text", [
    "10,20,30,50\n1.5,2,3,4\n", "x0,y0,x1,y1\n10,20,30,50\n1.5,2,3,4\n", "label,y1,x1,y0,x0\nwbc,50,30,20,10\nwbc,4,3,2,1.5\n",
    "\ufeffx0,y0,x1,y1\r\n10,20,30,50\r\n\r\n1.5,2,3,4", "[[10,20,30,50],[1.5,2,3,4]]",
    '{"boxes": [{"x0":10,"y0":20,"x1":30,"y1":50},{"x0":1.5,"y0":2,"x1":3,"y1":4}]}',
])  # fmt: skip
def test_the_same_boxes_in_every_form(tmp_path: Path, text: str) -> None:
    path = tmp_path / "boxes"
    path.write_text(text, "utf-8")
    assert read_boxes(path) == [(10, 20, 30, 50), (1.5, 2, 3, 4)]


@pytest.mark.parametrize(("text", "said"), [
    ("10,20,30\n", "line 1: '10,20,30' is not a box; give four numbers"),
    ("1,2,3,4\n10,20,a,50\n", "line 2: '10,20,a,50' is not a box"),
    ("30,20,10,50\n", "line 1: 30,20,10,50 is not a box; x0 has to be left of x1"),
    ("nan,20,30,50\n", "is not a box"), ("", "holds 0 boxes"), ("[]", "holds 0 boxes"), ("[[1,2,3,true]]", "is not a box"),
    ("[1,2,3,4]", "box 1: '1' is not a box"), ('{"cells": 3}', "holds no list of boxes"), ("[[1,2", "not valid JSON"),
    ('{"boxes": [{"x0": 1}]}', "is not a box"), ("[" * 100_000, "not valid JSON"),
])  # fmt: skip
def test_a_malformed_list_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(CytosaeError, match=r"boxes\.csv") as error:
        read_boxes(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(CytosaeError, match="cannot be read"):
        read_boxes(tmp_path / "none.csv")


def test_a_box_becomes_a_square_around_its_middle() -> None:
    (window,) = box_windows([(10, 20, 30, 60)], 100, 100, 1.5)
    assert (window.x, window.y, window.width, window.height) == (-10, 10, 60, 60)
    assert json.dumps([window.x])  # a plain number
    with pytest.raises(CytosaeError, match=r"Box 1 .* lies outside of the field; the field has 100 x 100 pixels"):
        box_windows([(300, 20, 330, 60)], 100, 100)
