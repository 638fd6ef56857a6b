"""Tables and folders of texts with labels: how columns are found, and what is said of files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.data.items import ItemData
from engine.data.text import labelled, labelled_pairs, passages, sources, tagged
from engine.errors import EngineError


def _all(data: ItemData) -> dict[str, str]:
    rows = [row for split in (data.train, data.validation, data.test) for row in split.rows]  # type: ignore[attr-defined]
    return {" | ".join(row.texts): row.label for row in rows}


def _file(folder: Path, name: str, text: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


ROWS = "".join(f"row {i} of text,{'ab'[i % 2]}\n" for i in range(10))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "text,label\n" + ROWS),
        ("a.csv", "id;Label;Sentence\n" + "".join(f"{i};{'ab'[i % 2]};row {i} of text\n" for i in range(10))),
        ("a.tsv", "label\ttext\n" + "".join(f"{'ab'[i % 2]}\trow {i} of text\n" for i in range(10))),
        ("a.csv", "\ufeffcontent,class\r\n" + ROWS.replace("\n", "\r\n")),
        ("a.jsonl", "".join(json.dumps({"label": "ab"[i % 2], "text": f"row {i} of text"}) + "\n" for i in range(10))),
        ("a.json", json.dumps([{"label": "ab"[i % 2], "text": f"row {i} of text"} for i in range(10)])),
    ],
)
def test_texts_and_labels_are_found_by_the_names_of_their_columns(tmp_path: Path, name: str, text: str) -> None:
    data = labelled.load(_file(tmp_path, name, text), None)
    assert _all(data) == {f"row {i} of text": "ab"[i % 2] for i in range(10)}
    assert data.labels == ("a", "b") and not any("by their place" in note for note in data.notes)


def test_columns_without_known_names_are_taken_by_their_place_and_a_note_says_so(tmp_path: Path) -> None:
    data = labelled.load(_file(tmp_path, "a.csv", "opinion,verdict\n" + ROWS), None)
    assert len(_all(data)) == 10 and any("text is 'opinion', the label 'verdict', by their place" in note for note in data.notes)
    data = labelled.load(_file(tmp_path, "b.csv", ROWS), None)
    assert len(_all(data)) == 10 and any("its first row is no header" in note for note in data.notes)


def test_numbers_are_labels_and_quoted_text_keeps_its_line_breaks(tmp_path: Path) -> None:
    text = "text,label\n" + "".join(f'"one,\ntwo {i}",{i % 2}.0\n' for i in range(6))
    assert _all(labelled.load(_file(tmp_path, "a.csv", text), None)) == {f"one,\ntwo {i}": str(i % 2) for i in range(6)}


def test_folders_of_classes_and_files_named_by_their_split_are_read(tmp_path: Path) -> None:
    for kind in ("no", "yes"):
        (tmp_path / "classes" / kind).mkdir(parents=True)
        for i in range(4):
            _file(tmp_path / "classes" / kind, f"{i}.txt", f"{kind} {i}")
    assert len(_all(labelled.load(tmp_path / "classes", None))) == 8
    (tmp_path / "files").mkdir()
    for split in ("train", "dev", "test"):
        _file(tmp_path / "files", f"{split}.csv", "text,label\n" + ROWS.replace("row", split))
    data = labelled.load(tmp_path / "files", None)
    assert all(row.texts[0].startswith("test") for row in data.test.rows) and len(data.test) == 10  # type: ignore[attr-defined]
    assert len(data.validation) == len(data.train) == 10 and data.notes == ()


def test_pairs_are_found_by_name(tmp_path: Path) -> None:
    rows = "".join(f"{i % 2},first {i},second {i}\n" for i in range(6))
    data = labelled_pairs.load(_file(tmp_path, "a.csv", "label,sentence1,sentence2\n" + rows), None)
    assert _all(data) == {f"first {i} | second {i}": str(i % 2) for i in range(6)}


def test_a_few_rows_that_lack_a_cell_are_passed_over_and_many_are_an_error(tmp_path: Path) -> None:
    data = labelled.load(_file(tmp_path, "a.csv", "text,label\n" + ROWS * 2 + ",a\n"), None)
    assert any("1 rows lack a cell and were passed over, line 22 of a.csv first" in note for note in data.notes)
    with pytest.raises(EngineError, match=r"b.csv, line 2 lacks a cell, as 3 of 13 rows do: fill them in"):
        labelled.load(_file(tmp_path, "b.csv", "text,label\n,a\nx,\n,\n" + ROWS), None)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.csv", "text,label\nfine,a\nGrüße,b\n".encode("latin-1"), r"is not UTF-8 .byte 0xfc at 20, line 3."),
        ("a.csv", "text,label\nx,a\n".encode("utf-16"), "is in UTF-16: convert it"),
        ("a.csv", b'text,label\n"never closed,a\nx,b\n', r"a.csv, line 3: .*is a quote not closed"),
        ("a.csv", b"text,label\nx,a,b,c\n", "a.csv, line 2 has 4 cells and the first row 2"),
        ("a.csv", b"text\nx\ny\n", "has 1 columns: give 2, a text and a label"),
        ("a.csv", b"text,label\nx,a\ny,a\nz,a\n", "has one label: a classification tells two or more apart"),
        ("a.csv", b"text,label\nx,a\ny,b\n", "has 2 rows, which cannot be divided"),
        ("a.csv", b'text,label\n"' + b"x" * 10_000_100 + b'",a\n', "a.csv, line 2: field larger than field limit"),
        ("a.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8, "is not text, it holds binary data"),
        ("a.jsonl", b'{"text": "x", "label": "a"}\n{"text": \n', "a.jsonl, line 2 cannot be read as JSON"),
        ("a.jsonl", b'["x", "a"]\n', "a.jsonl, line 1 is no JSON object"),
        ("a.jsonl", b'{"text": "x", "label": ["a", "b"]}\n' * 4, "a.jsonl, line 1: the label is a list: give one label a row"),
        ("a.jsonl", b'{"text": ["x"], "label": "a"}\n' * 4, "a.jsonl, line 1: 'text' is a list, not text"),
        ("a.parquet", b"PAR1", "parquet"),
        ("a.xlsx", b"x", "is no table: give a file in .csv"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_told_in_one_line_with_its_place(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(EngineError, match=said) as told:
        labelled.load(_file(tmp_path, name, content), None)
    assert "\n" not in str(told.value) and name in str(told.value)


def test_words_and_tags_are_read_from_conll_and_from_json_lines(tmp_path: Path) -> None:
    lines = "-DOCSTART- -X- O O\n\n" + "".join(f"Ann{i} NNP B-PER\nruns VBZ O\n\n" for i in range(5))
    data = tagged.load(_file(tmp_path, "a.conll", lines), None)
    assert data.labels == ("B-PER", "O") and sum(len(part) for part in (data.train, data.validation, data.test)) == 5
    rows = "".join(json.dumps({"tokens": [f"Ann{i}", "runs"], "tags": ["B-PER", "O"]}) + "\n" for i in range(5))
    assert tagged.load(_file(tmp_path, "a.jsonl", rows), None).labels == ("B-PER", "O")
    with pytest.raises(EngineError, match="b.conll, line 3 has 1 column: write a word and its tag a line"):
        tagged.load(_file(tmp_path, "b.conll", "Ann B\nruns O\nfast\n"), None)
    with pytest.raises(EngineError, match=r"b.jsonl, line 1 has 2 tokens and 1 tags .Ann runs.: give a tag each"):
        tagged.load(_file(tmp_path, "b.jsonl", '{"tokens": ["Ann", "runs"], "tags": ["B"]}\n'), None)


def test_lines_scored_pairs_and_sources_are_read(tmp_path: Path) -> None:
    assert len(passages.load(_file(tmp_path, "a.txt", "one\n\ntwo\nthree\nfour\n"), None).train) == 2
    scored = "sentence1,sentence2,score\n" + "".join(f"a {i},b {i},{i / 2}\n" for i in range(6))
    test = passages.load(_file(tmp_path, "s.csv", scored), None).test
    assert [row.side for row in test.rows] == [0, 1] and test.rows[0].score == test.rows[1].score  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="b.csv, line 2: the score in 'score' is no number"):
        passages.load(_file(tmp_path, "b.csv", "sentence1,sentence2,score\na,b,much\n"), None)
    data = sources.load(_file(tmp_path, "p.csv", "output,input\n" + "".join(f"b {i},a {i}\n" for i in range(5))), None)
    assert all(row.source.startswith("a") and row.target.startswith("b") for row in data.train.rows)  # type: ignore[attr-defined]


def test_a_number_sign_with_a_tag_is_a_word_and_others_begin_a_comment(tmp_path: Path) -> None:
    lines = "# made by hand\n" + "".join(f"paid{i} O\n# O\n2 B\n\n" for i in range(5))
    data = tagged.load(_file(tmp_path, "a.conll", lines), None)
    assert data.train.read([0]).inputs[0][1:] == ("#", "2") and data.labels == ("B", "O")


def test_a_line_ends_where_the_file_ends_it(tmp_path: Path) -> None:
    data = passages.load(_file(tmp_path, "a.txt", "".join(f"a{i}\u0085b\u2028c\r\n" for i in range(5))), None)
    assert sum(map(len, (data.train, data.validation, data.test))) == 5


@pytest.mark.parametrize("first", ["sep=;\n", '\ufeff"sep=;"\r\n', '"text, or such";label\n'])
def test_what_separates_cells_is_told_by_the_first_line(tmp_path: Path, first: str) -> None:
    header = "" if "label" in first else "text;label\n"
    data = labelled.load(_file(tmp_path, "a.csv", first + header + "".join(f"x, {i}, z;{'ab'[i % 2]}\n" for i in range(8))), None)
    assert data.labels == ("a", "b") and sum(map(len, (data.train, data.validation, data.test))) == 8


def test_a_label_that_is_no_number_is_missing(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"x {i}", "label": float("nan") if i == 3 else i % 2}) for i in range(20)]
    data = labelled.load(_file(tmp_path, "a.jsonl", "\n".join(rows)), None)
    assert data.labels == ("0", "1") and any("1 rows lack a cell and were passed over, line 4" in note for note in data.notes)
