"""Models from folders and from the hub: those that are whole, and one clear line for each that is not."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_language
import torch
from families import FAMILIES, build
from safetensors.torch import load_file, save_file

from engine.errors import EngineError, UsageError
from engine.models import hub
from engine.models.language_registry import ENTRIES, LanguageEntry, hub_cache, is_language
from engine.models.registry import find
from engine.models.transformers_load import check_vocabulary, context_of, load_language


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language.write_folder(tmp_path_factory.mktemp("language") / "tiny")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    place = tmp_path / "sharded"
    tiny_language.gpt2().save_pretrained(place, max_shard_size="20KB")
    tiny_language.tokenizer().save_pretrained(place)
    assert len(list(place.glob("*.safetensors"))) > 1
    return place


def test_a_folder_gives_the_model_that_was_saved_in_float32(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    half = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    found = load_language(str(folder))
    expected = tiny_language.gpt2()
    for name, tensor in found.model.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected.state_dict()[name].half().float(), rtol=0, atol=0)
    assert (found.context, found.window, found.source, found.model.training) == (32, 32, "folder", False)
    assert found.params == sum(p.numel() for p in expected.parameters())
    assert found.tokenizer("the quick fox")["input_ids"] == tiny_language.tokenizer()("the quick fox")["input_ids"]
    # The screen belongs to whoever shows the run.
    assert capfd.readouterr() == ("", "")


def test_shards_and_torch_files_load_as_well(sharded: Path, folder: Path) -> None:
    expected = tiny_language.gpt2().state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(expected, folder / "pytorch_model.bin")
    for place in (sharded, folder):
        found = load_language(str(place)).model.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", [*FAMILIES, "gptj"])
def test_every_family_loads_as_it_was_saved(family: str, tmp_path: Path) -> None:
    from transformers import GPTJConfig, GPTJForCausalLM

    # GPT-J has no attention but the plain one.
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "rotary_dim": 4, "bos_token_id": 0, "eos_token_id": 1}
    model = (GPTJForCausalLM(GPTJConfig(vocab_size=96, **shape)) if family == "gptj" else build(family)).eval()
    model.save_pretrained(tmp_path)
    found = load_language(str(tmp_path), text=False)
    ids = torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.logits(ids), model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    assert found.context == 32 and found.model.config._attn_implementation == ("eager" if family == "gptj" else "sdpa")


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (print, ("this must not run",))


def cut(place: Path, name: str = "model.safetensors") -> None:
    content = (place / name).read_bytes()
    (place / name).write_bytes(content[: len(content) // 2])


def no_rows(place: Path) -> None:
    tiny_language.gpt2(rows=200).save_pretrained(place)


def many_rows(place: Path) -> None:
    tiny_language.gpt2(rows=2000).save_pretrained(place)


def drop_tensor(place: Path) -> None:
    state = load_file(place / "model.safetensors")
    del state["transformer.h.1.mlp.c_fc.weight"]
    save_file(state, place / "model.safetensors", {"format": "pt"})


def not_finite(place: Path) -> None:
    state = load_file(place / "model.safetensors")
    state["transformer.wpe.weight"][3, 3] = float("nan")
    save_file(state, place / "model.safetensors", {"format": "pt"})


def recast(place: Path, change: Callable[[torch.Tensor], torch.Tensor], file: str = "model.safetensors") -> None:
    state = {name: change(tensor) for name, tensor in load_file(place / "model.safetensors").items()}
    (place / "model.safetensors").unlink()
    if file == "model.safetensors":
        save_file(state, place / file, {"format": "pt"})
    else:
        torch.save(state, place / file)


def evil(place: Path) -> None:
    (place / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Evil()}, place / "pytorch_model.bin")


def torch_file_of_a_list(place: Path) -> None:
    (place / "model.safetensors").unlink()
    torch.save([1, 2, 3], place / "pytorch_model.bin")


def sees_ahead(place: Path) -> None:
    """An encoder whose head is that of a decoder, as transformers offers it."""
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertLMHeadModel(BertConfig(vocab_size=tiny_language.ROWS, **shape)).save_pretrained(place)


def without_tokenizer(place: Path) -> None:
    for path in place.glob("token*"):
        path.unlink()


def remote(place: Path) -> None:
    tiny_language.edit_config(place, model_type="unheard-of", auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    (place / "modeling.py").write_text("raise SystemExit('this must not run')")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda p: (p / "config.json").unlink(), "is no language model: it has no config.json"),
        (lambda p: (p / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda p: (p / "config.json").write_text("[]"), "is not a JSON object"),
        (lambda p: (p / "model.safetensors").unlink(), "has no weights"),
        (cut, "bytes: copy or download it again"),
        (lambda p: (p / "model.safetensors").write_bytes(b"rubbish" * 9), "is not a whole safetensors file"),
        (lambda p: (p / "model.safetensors").write_bytes(b""), "is not a whole safetensors file"),
        (without_tokenizer, "has no tokenizer"),
        (lambda p: (p / "tokenizer.json").write_text("{"), "tokenizer in .* cannot be read"),
        (no_rows, "300 tokens and the embedding 200 rows: they belong to different models"),
        (many_rows, "300 tokens and the embedding 2,000 rows"),
        (drop_tensor, "lacks 1 of the model's tensors, transformer.h.1.mlp.c_fc.weight first"),
        (not_finite, "NaN or infinity in transformer.wpe.weight"),
        (lambda p: tiny_language.edit_config(p, n_embd=20), "has the shape 48, and config.json asks for 60"),
        (lambda p: tiny_language.edit_config(p, model_type="unheard-of"), "knows no decoder of type 'unheard-of'"),
        (lambda p: tiny_language.edit_config(p, architectures=["GPT2ForSequenceClassification"]), "does not predict the next token"),
        (lambda p: tiny_language.edit_config(p, quantization_config={"quant_method": "gptq"}), r"quantized already \(gptq\)"),
        (lambda p: (p / "config.json").write_text("[" * 100_000), "cannot be read as JSON"),
        (lambda p: tiny_language.edit_config(p, quantization_config="gptq"), r"quantized already \(gptq\)"),
        (lambda p: tiny_language.edit_config(p, architectures="BertModel"), "holds BertModel, which does not predict"),
        (lambda p: tiny_language.edit_config(p, n_layer=0), "has no sequence of blocks"),
        (lambda p: tiny_language.edit_config(p, n_layer=1), r"holds transformer\.h\.1\.attn\.c_attn\.weight, which its config"),
        (lambda p: tiny_language.edit_config(p, n_head=3), "cannot be loaded|cannot be run"),
        (lambda p: tiny_language.edit_config(p, vocab_size=2_000_000_000), "wte.weight has the shape 300 × 16, and config.json asks for"),
        (sees_ahead, "sees the tokens that it is to predict"),
        (torch_file_of_a_list, "holds a list, not a state_dict"),
        (remote, "asks to run code that comes with it, which qtui never does"),
        (evil, "holds more than weights and was not opened"),
        (lambda p: recast(p, lambda t: (t * 100).to(torch.int8)), r"quantized already \(transformer\.\S+ is I8\)"),
        (lambda p: recast(p, lambda t: t > 0), r"quantized already \(\S+ is BOOL\)"),
        (lambda p: recast(p, lambda t: t.to(torch.float8_e4m3fn)), r"quantized already \(\S+ is F8_E4M3\)"),
        (lambda p: recast(p, lambda t: t.to(torch.complex64), "pytorch_model.bin"), r"pytorch_model\.bin holds \S+ as complex64"),
        (lambda p: recast(p, torch.zeros_like), "holds nothing but zeros"),
    ],
)
def test_a_broken_folder_is_one_clear_line(folder: Path, harm: Callable[[Path], Any], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    harm(folder)
    with pytest.raises(EngineError, match=said) as raised:
        load_language(str(folder))
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value) and raised.value.exit_code == 1
    assert "this must not run" not in "".join(capfd.readouterr())


def test_biases_that_the_config_leaves_out_are_missed(tmp_path: Path) -> None:
    build("llama", attention_bias=True).save_pretrained(tmp_path)
    tiny_language.edit_config(tmp_path, attention_bias=False)
    with pytest.raises(EngineError, match=r"holds model\.layers\.0\.self_attn\.k_proj\.bias, which its config"):
        load_language(str(tmp_path), text=False)


def test_masks_of_older_files_are_not_missed(folder: Path) -> None:
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    masks = {"h.0.attn.bias": torch.ones(1, 1, 32, 32), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file({**bare, **masks}, folder / "model.safetensors", {"format": "pt"})
    assert load_language(str(folder)).params == sum(p.numel() for p in tiny_language.gpt2().parameters())


def test_the_context_is_that_of_the_config_whatever_it_is_called() -> None:
    from transformers import BloomConfig, MptConfig

    assert (context_of(MptConfig(max_seq_len=64)), context_of(BloomConfig())) == (64, 2048)


@pytest.mark.parametrize("harm", [cut, lambda p, name: (p / name).unlink()])
def test_half_a_shard_and_a_missing_one_are_named(sharded: Path, harm: Callable[[Path, str], Any]) -> None:
    name = sorted(path.name for path in sharded.glob("*.safetensors"))[1]
    harm(sharded, name)
    with pytest.raises(EngineError, match=name):
        load_language(str(sharded))


def test_an_index_cannot_reach_outside_its_folder(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../other/model.safetensors"}}))
    with pytest.raises(EngineError, match="outside its folder"):
        load_language(str(sharded))


def test_a_torch_file_that_is_no_weights_leaves_no_warning(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}, protocol=4))
    with pytest.raises(EngineError, match="was not opened, so that it cannot run code"):
        load_language(str(folder))
    assert capfd.readouterr() == ("", "")


def test_data_of_token_ids_needs_no_tokenizer(folder: Path) -> None:
    without_tokenizer(folder)
    assert load_language(str(folder), text=False).tokenizer is None


def test_rows_of_padding_are_no_mismatch() -> None:
    check_vocabulary(tiny_language.tokenizer(), tiny_language.gpt2(rows=384), Path("x"))


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("gtp2", UsageError, "did you mean gpt2"),
        ("./nowhere", EngineError, "does not exist"),
        ("a/b/c", EngineError, "does not exist"),
        (__file__, EngineError, "is a file"),
        ("https://huggingface.co/openai-community/gpt2", UsageError, "is an address: give the model's id"),
    ],
)
def test_a_name_that_is_no_model(name: str, kind: type[EngineError], said: str) -> None:
    with pytest.raises(kind, match=said):
        load_language(name)


class Hub:
    """Stands in for the hub's client: it has ``names`` in its repository, or fails with ``error``."""

    def __init__(self, place: Path, error: Exception | None = None) -> None:
        self.place, self.error = place, error
        self.asked: list[Any] = []

    def snapshot_download(self, repo: str, allow_patterns: Any = None, local_files_only: bool = False) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        self.asked.append(sorted(allow_patterns))
        return str(self.place)

    def model_info(self, repo: str) -> Any:
        if self.error:
            raise self.error
        names = [*(path.name for path in self.place.iterdir()), "modeling_evil.py", "onnx/model.onnx", "pytorch_model.bin", "README.md"]
        return type("Info", (), {"siblings": [type("File", (), {"rfilename": name}) for name in names]})


def install(monkeypatch: pytest.MonkeyPatch, stand_in: Hub) -> Hub:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    return stand_in


def test_a_model_of_the_hub_is_downloaded_without_its_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = install(monkeypatch, Hub(folder))
    found = load_language("someone/tiny")
    assert found.source == "hub" and found.name == "someone/tiny"
    (asked,) = stand_in.asked
    assert "model.safetensors" in asked and "config.json" in asked and "tokenizer.json" in asked
    assert not {"modeling_evil.py", "onnx/model.onnx", "pytorch_model.bin"} & set(asked)


def test_gpt2_is_openais_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(hub, "fetch", lambda repo: (seen.append(repo), folder)[1])
    assert load_language("gpt2").source == "hub" and seen == ["openai-community/gpt2"]


def failures() -> list[tuple[Exception, str]]:
    from unittest.mock import MagicMock

    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    answer = MagicMock(headers={})
    return [
        (GatedRepoError("gated", response=answer), "is gated: accept its terms"),
        (RepositoryNotFoundError("none", response=answer), "is not on the Hugging Face hub"),
        (HfHubHTTPError("busy", response=answer), r"cannot be downloaded \(busy\)"),
        (ConnectionError("no route"), "hub cannot be reached"),
        (type("ConnectError", (Exception,), {})("no name"), "hub cannot be reached"),
        (OSError(28, "No space left on device"), "cannot be kept .No space left"),
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_hub_that_fails_is_one_line_that_offers_a_folder(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error, said = failures()[number]
    install(monkeypatch, Hub(tmp_path, error))
    with pytest.raises(EngineError, match=said) as raised:
        hub.fetch("someone/tiny")
    assert "local folder" in str(raised.value) and "\n" not in str(raised.value)


def test_what_is_whole_in_the_cache_needs_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, local_files_only: str(folder))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("the network was asked"))
    assert hub.fetch("someone/tiny") == folder


def test_weights_of_pytorch_are_taken_where_there_are_no_others() -> None:
    assert hub.wanted(["config.json", "pytorch_model-00001-of-00002.bin", "training_args.bin", "x.py"]) == [
        "config.json", "pytorch_model-00001-of-00002.bin",
    ]  # fmt: skip


def test_where_a_model_of_the_hub_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert hub_cache() == tmp_path / "hub" and ENTRIES["gpt2"].where == "to download"
    place = tmp_path / "hub" / "models--openai-community--gpt2" / "snapshots" / "abc"
    place.mkdir(parents=True)
    assert ENTRIES["gpt2"].where == "to download"
    (place / "model.safetensors").touch()
    assert ENTRIES["gpt2"].where == "cached" and ENTRIES["gpt2"].place == place


def test_which_names_are_language_models(folder: Path) -> None:
    assert all(is_language(name) for name in ("gpt2", "gpt2-mini", "Qwen/Qwen3-0.6B", str(folder)))
    assert not any(is_language(name) for name in ("simplecnn", "models.net:make", "nets/mine.py", str(folder.parent), "a/b/c"))


def test_a_networks_name_wins_over_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("resnet18"))
    monkeypatch.chdir(folder.parent)
    assert not is_language("resnet18") and is_language("./resnet18")


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("gtp2", UsageError, "did you mean gpt2"),
        ("", EngineError, "is a folder without config.json"),
        ("nowhere", EngineError, "nowhere does not exist: give .* a language model's folder, or OWNER/MODEL"),
    ],
)
def test_a_name_of_no_kind_of_model_is_told_what_there_is(name: str, kind: type[EngineError], said: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=said) as raised:
        find(name if kind is UsageError else str(tmp_path / name))
    assert raised.type is kind


def test_a_record_that_cannot_be_read_tells_nothing() -> None:
    assert LanguageEntry("x", "y", 1, 1, folder="nowhere").perplexity() == {} == ENTRIES["gpt2"].perplexity()


def test_a_token_too_many_and_rows_of_padding_are_warned_of() -> None:
    count = len(tiny_language.tokenizer().get_vocab())
    (few,) = check_vocabulary(tiny_language.tokenizer(), tiny_language.gpt2(rows=count - 1), Path("x"))
    assert f"{count - 1:,} rows: a text with an id of {count - 1:,} or more is refused" in few
    (many,) = check_vocabulary(tiny_language.tokenizer(), tiny_language.gpt2(rows=count + 1024), Path("x"))
    assert many.endswith("the rest is never read")
    with pytest.raises(EngineError, match="they belong to different models"):
        check_vocabulary(tiny_language.tokenizer(), tiny_language.gpt2(rows=count // 2), Path("x"))


@pytest.mark.parametrize("form", ["float8", "int8", "scales", "bin"])
def test_quantized_weights_that_the_config_does_not_name_are_refused(folder: Path, form: str) -> None:
    state = load_file(folder / "model.safetensors")
    name = "transformer.h.0.mlp.c_fc.weight"
    if form == "scales":
        state["transformer.h.0.mlp.c_fc.weight_scale"] = torch.ones(1)
    else:
        state[name] = state[name].to(torch.float8_e4m3fn) if form == "float8" else (state[name] * 100).to(torch.int8)
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    said = "it has transformer.h.0.mlp.c_fc.weight_scale" if form == "scales" else f"{name} is (F8_E4M3|I8|int8)"
    with pytest.raises(EngineError, match=rf"is quantized already \({said}\), which its config.json does not say"):
        load_language(str(folder))
