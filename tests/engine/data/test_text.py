"""Text from every source: what the splits hold, that nothing of one is in another, and one clear line for what is no text."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_language
import torch

from engine.data.text import documents, wikitext
from engine.data.text.documents import SPLITS, Document, python_docs, python_sources, split_of
from engine.data.text.encoded import SequenceData, TextData, load_text
from engine.data.text.prose import SHINGLE, Novel, paragraphs
from engine.data.text.textfiles import divide, read_file
from engine.data.text.tokens import encode
from engine.errors import Cancelled, EngineError, UsageError
from engine.events.cancellation import StopToken


def loaded(name: object) -> TextData:
    found = load_text(str(name), tiny_language.language(), StopToken())
    assert isinstance(found, TextData)
    return found


def decoded(stream: torch.Tensor) -> str:
    return str(tiny_language.tokenizer().decode(stream.tolist()))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A standard library of a few modules."""
    place = tmp_path_factory.mktemp("lib")
    (place / "pydoc_data").mkdir()
    told = "This is the statement that a program uses to repeat what it has done before."
    topics = {"while": f'The "while" statement\n*********************\n\n{told}\n\n   while_stmt ::= "while" expression\n', "also": told}
    (place / "pydoc_data" / "topics.py").write_text(f"raise SystemExit('executed')\ntopics = {topics!r}\n")
    modules = {
        "a": "The first module of the library, and it has one function.",
        "b/__init__": "A package in which there is nothing to be seen.",
    }
    for number in range(40):
        words = " ".join(tiny_language.WORDS[(number * 7 + i * (number % 5 + 1)) % len(tiny_language.WORDS)] for i in range(20))
        modules[f"m{number}"] = f"Module number {number} of the many in this library.\n\n    {words} {number}"
    for name, text in modules.items():
        (place / name).parent.mkdir(exist_ok=True)
        function = f'    def f(self):\n        "Return what the caller of {name} asks for."\n'
        body = f'"""{text}"""\nraise SystemExit("executed")\nclass C:\n{function}'
        (place / f"{name}.py").write_text(body)
    (place / "broken.py").write_text("def (")
    (place / "test").mkdir()
    (place / "test" / "hidden.py").write_text('"""This is a test of the library and not to be read by anyone."""')
    return place


@pytest.fixture
def small_library(library: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Path:
    monkeypatch.setattr(documents.sysconfig, "get_path", lambda name: str(library))
    return library


def test_docstrings_and_topics_are_read_and_nothing_is_executed(small_library: Path) -> None:
    found = {doc.name: doc.text for doc in python_docs()}
    assert found["a"] == "The first module of the library, and it has one function.\nReturn what the caller of a asks for.\n"
    assert found["b"].startswith("A package in which")
    # The longer topic holds what both say; headings lose their underlining, and grammar is left out.
    assert "topic also" not in found
    assert found["topic while"].splitlines()[0] == 'The "while" statement' and len(found["topic while"].splitlines()) == 2
    assert "broken" not in found and not any("test" in name for name in found) and list(found) == sorted(found)
    assert python_docs() == python_docs()


def test_every_split_has_documents_and_no_sentence_of_another(small_library: Path) -> None:
    parts = {split: [doc for doc in python_docs() if split_of(doc.name) == split] for split in SPLITS}
    assert all(parts.values())

    def runs(docs: Sequence[Document]) -> set[str]:
        lines = [re.findall(r"\w+", line.lower()) for doc in docs for line in doc.text.splitlines()]
        return {" ".join(words[i : i + SHINGLE]) for words in lines for i in range(max(len(words) - SHINGLE + 1, 1))}

    train = runs(parts["train"])
    for split in ("validation", "test"):
        lines = [{*runs([Document("", line)])} for doc in parts[split] for line in doc.text.splitlines()]
        assert all(2 * len(line & train) <= len(line) for line in lines)


@pytest.mark.slow
def test_this_pythons_own_documentation_divides() -> None:
    found = python_docs()
    sizes = {split: sum(len(doc.text) for doc in found if split_of(doc.name) == split) for split in SPLITS}
    assert sizes["train"] > 800_000 and min(sizes["validation"], sizes["test"]) > 60_000
    assert sum(path.name == "topics.py" for path in python_sources()) == 1


def test_prose_is_told_from_code_and_tables() -> None:
    text = """
    Return the value that was
    given, or None.

    >>> f(3)
    3

    def f(x): return the value of it

    Name    Meaning
    ====    =======

    * The item of a list is prose as well.

    Gib den Wert zurück, der gegeben wurde.

    x = f(y) + g(z) * 3
    """
    assert list(paragraphs(text)) == ["Return the value that was given, or None.", "* The item of a list is prose as well."]


def test_what_was_said_is_dropped_even_where_a_few_words_differ() -> None:
    novel = Novel()
    first = "Create a new socket using the given address family, socket type and protocol number of the caller's choice."
    assert list(novel.keep([first, "A short one."])) == [first, "A short one."]
    assert list(novel.keep([first.replace("Create", "Make"), "A short one.", "Another short one."])) == ["Another short one."]


def test_the_documentation_is_encoded_once(small_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(tiny_language.language(), context=8)
    first = load_text("python-docs", model, StopToken())
    monkeypatch.setattr(documents, "python_docs", lambda check: pytest.fail("read again"))
    second = load_text("python-docs", model, StopToken())
    assert isinstance(first, TextData) and isinstance(second, TextData) and first.documents == second.documents
    for split in SPLITS:
        assert torch.equal(first.streams[split], second.streams[split]) and second.streams[split].dtype == torch.int64
    monkeypatch.undo()


def test_reading_the_documentation_can_be_stopped(small_library: Path) -> None:
    stop = StopToken()
    stop.set()
    with pytest.raises(Cancelled):
        python_docs(stop.check)


def test_a_text_file_is_cut_in_three_whole_and_in_order(tmp_path: Path) -> None:
    text = tiny_language.sentences(200)
    (tmp_path / "my.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    found = loaded(tmp_path / "my.txt")
    assert decoded(torch.cat([found.streams[split] for split in SPLITS])) == text
    sizes = {split: len(stream) for split, stream in found.streams.items()}
    assert sizes["test"] == sizes["validation"] == int(0.1 * sum(sizes.values())) and found.documents["train"] == 0


def test_a_short_text_gives_each_split_a_window(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(tiny_language.sentences(6))
    found = loaded(tmp_path / "short.txt")
    assert len(found.streams["test"]) == len(found.streams["validation"]) == 32 <= len(found.streams["train"])


def test_the_files_of_a_folder_are_divided_whole_and_each_content_once(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(tiny_language.sentences(6, number))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "copy.md").write_text(tiny_language.sentences(6, 3))
    (tmp_path / ".hidden.txt").write_bytes(b"\xff")
    (tmp_path / "picture.png").write_bytes(b"\x00")
    found = loaded(tmp_path)
    assert sum(found.documents.values()) == 30 and min(found.documents.values()) >= 3 and found.documents["train"] > 20
    texts = {split: set(decoded(found.streams[split]).split("<|endoftext|>")) - {""} for split in SPLITS}
    assert set.union(*texts.values()) == {tiny_language.sentences(6, number) for number in range(30)}
    assert sum(len(part) for part in texts.values()) == 30
    assert all(torch.equal(loaded(tmp_path).streams[split], found.streams[split]) for split in SPLITS)


def test_files_that_name_their_split_are_taken_at_their_word(tmp_path: Path) -> None:
    for number, name in enumerate(("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")):
        (tmp_path / name).write_text(tiny_language.sentences(8, number))
    found = loaded(tmp_path)
    for number, split in enumerate(SPLITS):
        assert decoded(found.streams[split]) == tiny_language.sentences(8, number) + "<|endoftext|>"
    assert divide([Document("a.txt", "x"), Document("b.txt", "y")]) is None
    assert divide([Document(name, "y" * (500 if name == "a" else 1)) for name in "abcdefgh"]) is None


def test_windows_for_calibration_are_of_the_split_and_do_not_overlap(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text(tiny_language.sentences(200))
    data = loaded(tmp_path / "my.txt")
    stream = data.streams["train"]
    whole = {tuple(part.tolist()) for part in stream.split(32) if len(part) == 32}
    drawn = data.windows("train", 32, 10, seed=1)
    assert drawn.shape == (10, 32) and len({tuple(row) for row in drawn.tolist()} & whole) == 10
    assert torch.equal(drawn, data.windows("train", 32, 10, seed=1)) and not torch.equal(drawn, data.windows("train", 32, 10))
    assert len(data.windows("train", 32, 10**6)) == len(stream) // 32


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n ", "is empty"),
        (b"\x7fELF\x02\x01\x01\x00\x00\x00" * 30, "binary data"),
        (bytes(range(256)) * 9, "binary data"),
        ("Zum Gruße, es läuft.".encode("latin-1") * 9, "is not UTF-8 .byte 0xdf at 7.: convert it"),
        ("Zum Gruß".encode("utf-16"), "is in UTF-16: convert it, for example with iconv -f UTF-16 -t utf-8"),
        ("Zum Gruß".encode("utf-32"), "is in UTF-32: convert it"),
        (b"the fox", "[0-9]+ tokens, fewer than a window of 32: give a longer text"),
        (
            tiny_language.sentences(3).encode(),
            "part of .* fewer than a window of 32: give a longer text, 96 tokens or more, or a smaller data.context",
        ),
    ],
)
def test_what_is_no_text_is_one_clear_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "my.txt").write_bytes(content)
    with pytest.raises(EngineError, match=said) as raised:
        loaded(tmp_path / "my.txt")
    assert "\n" not in str(raised.value) and raised.value.exit_code == 1


def test_a_text_is_long_enough_for_the_windows_that_it_is_read_in(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text(tiny_language.sentences(3))
    found = load_text(str(tmp_path / "my.txt"), tiny_language.language(), StopToken(), window=16)
    assert isinstance(found, TextData) and all(len(stream) >= 16 for stream in found.streams.values())


def test_names_that_are_nothing_and_models_without_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean python-docs"):
        loaded("python-dogs")
    with pytest.raises(EngineError, match="does not exist"):
        loaded(tmp_path / "none.txt")
    with pytest.raises(EngineError, match="none.json cannot be read .No such file or directory.: check the path"):
        loaded(tmp_path / "none.json")
    with pytest.raises(EngineError, match="holds no text files"):
        loaded(tmp_path)
    with pytest.raises(EngineError, match="has no tokenizer"):
        load_text("python-docs", replace(tiny_language.language(), tokenizer=None), StopToken())
    with pytest.raises(EngineError, match="cannot be read"):
        read_file(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    for endless in (tmp_path / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(EngineError, match="is a device or a pipe"):
            read_file(endless)


def sequences_of(path: Path, content: Any) -> SequenceData:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    found = load_text(str(path), replace(tiny_language.language(), tokenizer=None), StopToken())
    assert isinstance(found, SequenceData)
    return found


def test_sequences_are_halved_and_each_is_in_one_split(tmp_path: Path) -> None:
    rows = [[number, number + 1, 7] for number in range(40)]
    found = sequences_of(tmp_path / "ids.json", [*rows, rows[5]]).sequences
    assert {split: len(part) for split, part in found.items()} == {"train": 17, "validation": 3, "test": 20}
    assert sorted(ids.tolist() for part in found.values() for ids in part) == rows
    assert [ids.tolist() for ids in found["test"]] == rows[1::2] and found["test"][0].dtype == torch.int64


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[[1, 2", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ({"a": 1}, "not a list of lists"),
        ([], "not a list of lists"),
        ([[1, "2"]], "not a list of lists"),
        ([[1, True]], "not a list of lists"),
        ([[1, 2], [1, 300]], "sequence 1 has the token 300, the model's go from 0 to 299"),
        ([[1, -2]], "has the token -2"),
        ([[1]], "sequence 0 has 1 tokens"),
        ([[1] * 33], "sequence 0 has 33 tokens: give 2 to 32"),
        ([[1, 2]] * 9, "1 different sequences cannot be split"),
    ],
)
def test_wrong_sequences_are_one_clear_line(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        sequences_of(tmp_path / "ids.json", content)


def archive(path: Path, names: Sequence[str] = ("train", "valid", "test")) -> str:
    with zipfile.ZipFile(path, "w") as packed:
        for number, name in enumerate(names):
            packed.writestr(f"wikitext-2-raw/wiki.{name}.raw", f" \n = Title = \n \n{tiny_language.sentences(20, number)}")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_wikitext_is_joined_as_the_hugging_face_protocol_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = archive(tmp_path / "w.zip")
    text = wikitext.read(tmp_path / "w.zip", digest)["test"].text
    assert text.startswith("\n\n = Title = \n\n\n\n\n") and text.count("\n\n") > 20
    monkeypatch.setattr(wikitext, "wikitext2", lambda: wikitext.read(tmp_path / "w.zip", digest))
    found = loaded("wikitext2")
    assert decoded(found.streams["test"]) == text and found.documents == dict.fromkeys(SPLITS, 1)


@pytest.mark.parametrize("harm", [lambda p: p.write_bytes(b"PK"), lambda p: archive(p, ("train",)), lambda p: None])
def test_an_archive_that_is_another_is_refused(tmp_path: Path, harm: Callable[[Path], Any]) -> None:
    harm(tmp_path / "w.zip")
    with pytest.raises(EngineError, match="downloaded again"):
        wikitext.read(tmp_path / "w.zip")
    if (tmp_path / "w.zip").exists():
        with pytest.raises(EngineError, match="downloaded again"):
            wikitext.read(tmp_path / "w.zip", hashlib.sha256((tmp_path / "w.zip").read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("no route"), "cannot be reached: connect to a network, use --data python-docs"),
        (OSError(28, "No space left on device"), "cannot be kept .No space left on device.: free some space"),
    ],
)
def test_without_a_network_wikitext_names_what_needs_none(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(EngineError, match=said):
        loaded("wikitext2")


def test_no_special_token_but_the_end_is_added() -> None:
    tokenizer = tiny_language.tokenizer()
    end, the = tokenizer.eos_token_id, tokenizer("the")["input_ids"]
    docs = [Document("a", "the"), Document("b", "the")]
    assert encode(tokenizer, docs).tolist() == [*the, end, *the, end]
    assert encode(tokenizer, docs, ends=False).tolist() == [*the, *the]


def test_a_tokenizer_that_begins_a_text_with_a_token_feeds_it() -> None:
    import copy

    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_language.tokenizer())
    begin = tokenizer.convert_tokens_to_ids("Z")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="Z $0 Z", special_tokens=[("Z", begin)])
    documents = [Document("one", "quick fox\n"), Document("two", "lazy dog\n")]
    bare = [tiny_language.tokenizer()(document.text)["input_ids"] for document in documents]
    end = tokenizer.eos_token_id
    assert encode(tokenizer, documents).tolist() == [begin, *bare[0], end, begin, *bare[1], end]
    assert encode(tiny_language.tokenizer(), documents).tolist() == [*bare[0], end, *bare[1], end]


def test_a_text_with_an_id_that_no_row_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(tiny_language.sentences(200))
    model = tiny_language.language()
    plain = load_text(str(tmp_path / "text.txt"), model, StopToken())
    assert isinstance(plain, TextData)
    largest = max(int(stream.max()) for stream in plain.streams.values())
    enough, few = (replace(model, model=tiny_language.gpt2(rows=rows)) for rows in (largest + 1, largest))
    assert load_text(str(tmp_path / "text.txt"), enough, StopToken())
    with pytest.raises(EngineError, match=rf"has the token {largest:,} .* and the embedding of tiny {largest:,} rows"):
        load_text(str(tmp_path / "text.txt"), few, StopToken())
