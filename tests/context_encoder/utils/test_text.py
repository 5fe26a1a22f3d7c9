"""Text files as editors of different systems save them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from context_encoder.config import preset
from context_encoder.masks.voc import voc_outlines
from context_encoder.runs import RunError, read_config
from context_encoder.train import parse
from context_encoder.transfer.proposals import read_proposals
from context_encoder.transfer.voc import read_split
from context_encoder.utils.text import read_lines, read_text, shortened
from tests.helpers.vocdevkit import CLASSES, make_devkit

#: How an editor saves a text: its mark, encoding and line ends.
EDITORS = {
    "unix": (b"", "utf-8", "\n"),
    "notepad": (b"", "utf-8", "\r\n"),
    "notepad, UTF-8 with BOM": (b"\xef\xbb\xbf", "utf-8", "\r\n"),
    "notepad, Unicode": (b"\xff\xfe", "utf-16-le", "\r\n"),
    "notepad, Unicode big endian": (b"\xfe\xff", "utf-16-be", "\r\n"),
    "powershell without a mark": (b"", "utf-16-le", "\r\n"),
    "big endian without a mark": (b"", "utf-16-be", "\n"),
    "UTF-32": (b"\xff\xfe\0\0", "utf-32-le", "\r\n"),
    "old mac": (b"", "utf-8", "\r"),
}
EVERY_EDITOR = pytest.mark.parametrize("editor", EDITORS.values(), ids=list(EDITORS))


def saved(text: str, editor: tuple[bytes, str, str]) -> bytes:
    mark, encoding, end = editor
    return mark + text.replace("\n", end).encode(encoding)


@EVERY_EDITOR
def test_the_text_is_the_same_from_every_editor(
    tmp_path: Path, editor: tuple[bytes, str, str]
) -> None:
    text = 'Über "ß" 漢字\n\n  second\u2028line \n'
    (tmp_path / "a.txt").write_bytes(saved(text, editor))
    assert read_text(tmp_path / "a.txt") == text
    assert read_lines(tmp_path / "a.txt") == ['Über "ß" 漢字', "  second\u2028line "]


def test_short_and_foreign_contents(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for contents, text in ((b"", ""), (b"7", "7"), (b"\xef\xbb\xbf", ""), (b"\xff\xfe", "")):
        file.write_bytes(contents)
        assert read_text(file) == text
    for contents in ("é1".encode("cp1252"), b"\xff\xfe\x00", b"\x89PNG\r\n\x1a\n"):
        file.write_bytes(contents)
        with pytest.raises(ValueError, match=r"a\.txt is not text in UTF-8 or UTF-16: byte 0x"):
            read_text(file)
    # File names may be any bytes.
    file.write_bytes(b"\xe9.jpg\r\nb.jpg")
    assert [os.fsencode(line) for line in read_lines(file)] == [b"\xe9.jpg", b"b.jpg"]


@EVERY_EDITOR
def test_files_that_users_edit_load(tmp_path: Path, editor: tuple[bytes, str, str]) -> None:
    config = preset("laptop").model_copy(update={"steps": 7})
    file = tmp_path / "config.json"
    file.write_bytes(saved(config.model_dump_json(indent=2) + "\n", editor))
    assert read_config(file) == config
    assert parse(["--config", str(file)])[0].steps == 7

    boxes = tmp_path / "boxes.json"
    boxes.write_bytes(saved('{"a":\n[[1, 2, 3, 4]]}\n', editor))
    assert read_proposals(boxes)["a"].tolist() == [[1, 2, 3, 4]]


def test_voc_files_from_every_editor(tmp_path: Path) -> None:
    root = make_devkit(tmp_path / "devkit", train=4, test=2)
    (root / "VOC2007/SegmentationObject").symlink_to(root / "VOC2007/SegmentationClass")
    expected = read_split(root, "VOC2007", "trainval", "Main", CLASSES)
    outlines = voc_outlines(root)
    listings = [root / f"VOC2007/ImageSets/{name}.txt" for name in ("Main/trainval",)]
    listings.append(root / "VOC2007/ImageSets/Segmentation/train.txt")
    notes = sorted((root / "VOC2007/Annotations").glob("*.xml"))
    texts = {file: file.read_text() for file in (*listings, *notes)}
    for editor in EDITORS.values():
        for file, text in texts.items():
            declared = '<?xml version="1.0" encoding="utf-8"?>\n' if file.suffix == ".xml" else ""
            file.write_bytes(saved(declared + text, editor))
        found = read_split(root, "VOC2007", "trainval", "Main", CLASSES)
        assert [item.name for item in found] == [item.name for item in expected]
        for item, other in zip(found, expected, strict=True):
            assert item.boxes.tolist() == other.boxes.tolist()
        assert voc_outlines(root).equal(outlines)


def test_xml_in_an_encoding_of_its_own(tmp_path: Path) -> None:
    root = make_devkit(tmp_path / "devkit", train=4, test=2)
    note = next(iter(sorted((root / "VOC2007/Annotations").glob("*.xml"))))
    declared = '<?xml version="1.0" encoding="iso-8859-1"?>'
    note.write_bytes((declared + note.read_text()).replace("<object>", "<!--é--><object>")
                     .encode("latin-1"))  # fmt: skip
    assert read_split(root, "VOC2007", "trainval", "Main", CLASSES)


def test_messages_stay_short_whatever_a_file_holds(tmp_path: Path) -> None:
    assert shortened("a  b\nc") == "a b c"
    assert shortened("x" * 300, 100) == "x" * 47 + " ... " + "x" * 47
    file = tmp_path / "config.json"
    long = json.dumps({"steps": "9" * 5000, **{f"weight.{i}": list(range(99)) for i in range(99)}})
    for contents in (long, f"[{long}]", f'{{"preset": {long}}}', long[:-1]):
        file.write_text(contents)
        with pytest.raises(RunError, match="is not a training configuration") as raised:
            read_config(file)
        assert len(str(raised.value)) < 1500
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"a": [["x" * 5000, 2, 3, 4]]}))
    with pytest.raises(ValueError, match="cannot be used: could not convert string") as caught:
        read_proposals(boxes)
    assert len(str(caught.value)) < 400
