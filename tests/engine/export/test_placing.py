"""A format's files: all of them or none, and what was there stays until they are whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import Cancelled, EngineError
from engine.export import placing
from engine.export.making import fingerprint
from engine.export.placing import placed, size_of
from engine.export.registry import Format

TWO = Format("two", ("a.xml", "a.bin"), "", optional=("a.data",))
FOLDER = Format("folder", ("folder",), "")


def writes(*names: str, content: bytes = b"new") -> Callable[[Path], int]:
    def fill(path: Path) -> int:
        for name in names:
            (path.parent / name).write_bytes(content)
        return 7

    return fill


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_come_whole_and_optional_ones_go_with_the_model_that_had_them(tmp_path: Path) -> None:
    assert placed(TWO, tmp_path, writes("a.xml", "a.bin", "a.data", "between")) == 7
    assert contents(tmp_path) == dict.fromkeys(("a.xml", "a.bin", "a.data"), b"new") and size_of(TWO, tmp_path) == 9
    assert (tmp_path / "a.xml").stat().st_mode & 0o777 == 0o644
    whole = fingerprint(tmp_path, TWO)
    (tmp_path / "a.data").write_bytes(b"old")
    assert fingerprint(tmp_path, TWO) != whole
    placed(TWO, tmp_path, writes("a.xml", "a.bin", content=b"later"))
    assert contents(tmp_path) == {"a.xml": b"later", "a.bin": b"later"}


@pytest.mark.parametrize("error", [EngineError("why"), ValueError("a\nb"), OSError(28, "No space left on device"), Cancelled()])
def test_a_failure_leaves_what_was_there(error: BaseException, tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        writes("a.xml")(path)
        raise error

    placed(TWO, tmp_path, writes("a.xml", "a.bin", content=b"old"))
    with pytest.raises(Cancelled if isinstance(error, Cancelled) else EngineError) as told:
        placed(TWO, tmp_path, fails)
    assert "\n" not in str(told.value) and contents(tmp_path) == {"a.xml": b"old", "a.bin": b"old"}
    assert len([*tmp_path.iterdir()]) == 2, "nothing hidden is left"


def test_a_file_that_was_not_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"a\.xml cannot be written"):
        placed(TWO, tmp_path, writes("a.xml"))
    assert [*tmp_path.iterdir()] == []


def test_a_folder_takes_the_place_of_a_folder_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(name: str) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            path.mkdir()
            (path / name).write_bytes(b"123")

        return make

    placed(FOLDER, tmp_path, fill("one"))
    placed(FOLDER, tmp_path, fill("two"))
    assert contents(tmp_path) == {"folder/two": b"123"} and size_of(FOLDER, tmp_path) == 3
    replace, calls = placing.os.replace, []

    def full(old: Path, new: Path) -> None:
        calls.append(new)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        replace(old, new)

    monkeypatch.setattr(placing.os, "replace", full)
    with pytest.raises(EngineError, match="No space left"):
        placed(FOLDER, tmp_path, fill("three"))
    assert contents(tmp_path) == {"folder/two": b"123"} and [*tmp_path.iterdir()] == [tmp_path / "folder"]


def test_a_package_or_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="two needs no_such_one: uv pip install no-such-one, then export again"):
        placed(Format("two", ("a",), "", writes=("no_such_one",)), tmp_path, writes("a"))
    with pytest.raises(EngineError, match="nowhere.*cannot be written"):
        placed(TWO, tmp_path / "nowhere", writes("a.xml"))
