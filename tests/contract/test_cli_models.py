"""`terafleet model`: good models are published, bad files refused before anything is sent."""

import io
import pickle  # noqa: TID251 - one is made here to be refused.
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper

from tests.contract import test_model_files_gguf as gguf
from tests.contract.cli_stage import Person, operator, silent_gateway_thread
from tests.contract.gateway_thread import GatewayThread, Opened
from tests.contract.model_file_onnx_bytes import graph, model, weights
from tests.contract.small_bert import add_pooling, publish, small_weights

NAME = "org/encoder"


@pytest.fixture(scope="module")
def thread() -> Iterator[GatewayThread]:
    with silent_gateway_thread() as running:
        yield running


@pytest.fixture
def gateway(thread: GatewayThread) -> Iterator[Opened]:
    with thread.operators() as opened:
        yield opened


@pytest.fixture
def person(gateway: Opened, tmp_path: Path) -> Person:
    return operator(gateway, tmp_path)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A tiny encoder as its makers publish it."""
    return publish(tmp_path / "bert", small_weights())


def add(person: Person, path: Path, *options: str) -> Any:
    """Add a model; what the control plane says of it."""
    return person.reads("model", "add", NAME, str(path), *options)


def refused(person: Person, gateway: Opened, code: str, path: Path, *options: str) -> str:
    """Try to add a model; that it is refused, and that nothing of it was sent."""
    told = person.fails(code, "model", "add", NAME, str(path), *options)
    assert gateway.stage.objects._objects == {}
    assert gateway.stage.catalogue.models() == []
    return told


def encoder(folder: Path, content: bytes, **description: object) -> Path:
    """A folder in the form of the runtime `onnx`."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(content)
    (folder / "tokenizer.json").write_bytes(b"{}")
    described = {"format": 1, "dimensions": 2, "tokens_max": 16, "truncate": 1, **description}
    (folder / "terafleet.json").write_bytes(msgspec.json.encode(described))
    return folder


def encoder_graph() -> onnx.GraphProto:
    """A graph with the inputs and the output of an encoder."""
    whole = ["batch", "tokens"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, whole)
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("embedding", TensorProto.INT64, whole)
    node = helper.make_node("Mul", ["input_ids", "attention_mask"], ["embedding"])
    return helper.make_graph([node], "g", inputs, [output], [])


def gguf_model(*entries: gguf.Entry) -> bytes:
    """A small language model's file."""
    figures = {"context_length": 4_096, "embedding_length": 64, "block_count": 2}
    fields = [(f"llama.{name}", gguf.UINT32, gguf.u32(value)) for name, value in figures.items()]
    return gguf.model(*fields, *entries)


CHAT = ("tokenizer.chat_template", gguf.STRING, gguf.string("{{ messages }}"))


def pooling(number: int) -> gguf.Entry:
    return ("llama.pooling_type", gguf.UINT32, gguf.u32(number))


def test_a_published_encoder_is_converted_and_published(
    person: Person, gateway: Opened, bert: Path
) -> None:
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps({"not": "looked at"}))
    add_pooling(bert, "cls_token", "Transformer", "Pooling")
    view = add(person, bert)
    manifest = view["manifest"]
    assert (manifest["name"], manifest["runtime"]) == (NAME, "onnx")
    assert manifest["endpoints"] == ["/v1/embeddings"]
    assert manifest["options"] == {"tokens_max": 16, "truncate": 1}
    assert manifest["source"].startswith("model.safetensors sha256:")
    assert str(bert) not in manifest["source"]
    names = [file["name"] for file in manifest["files"]]
    assert names == ["model.onnx", "tokenizer.json", "terafleet.json"]
    assert gateway.stage.catalogue.model(view["model_id"]).name == NAME
    assert add(person, bert) == view, "the same model again changes nothing"
    assert NAME in person.succeeds("model", "list")


def test_what_was_converted_can_be_added_as_it_is(person: Person, bert: Path) -> None:
    from terafleet.control.model_import.bert import BertImport, import_bert

    made = person.folder / "made"
    imported = import_bert(bert, made)
    assert isinstance(imported, BertImport)
    manifest = add(person, made, "--tokens-max", "8", "--memory-mb", "99")["manifest"]
    assert manifest["options"] == {"tokens_max": 8, "truncate": 1}
    assert manifest["memory_mb"] == 99
    text = person.succeeds("model", "add", NAME, str(made), "--tokens-max", "8", "--memory-mb=99")
    assert "8 tokens" in text
    assert "99 MB" in text


def test_both_ways_estimate_the_same_memory(person: Person, bert: Path) -> None:
    from terafleet.control.model_import.bert import BertImport, import_bert

    imported = import_bert(bert, person.folder / "made")
    assert isinstance(imported, BertImport)
    assert add(person, person.folder / "made")["manifest"]["memory_mb"] == imported.memory_mb


@pytest.mark.parametrize(
    ("content", "given", "endpoints", "options"),
    [
        (gguf_model(), [], ["completions"], {"context_tokens": 2_048}),
        (
            gguf_model(CHAT),
            ["--context-tokens", "4096"],
            ["completions", "chat/completions"],
            {"context_tokens": 4_096},
        ),
        (
            gguf_model(),
            ["--embeddings"],
            ["embeddings", "completions"],
            {"context_tokens": 2_048, "embeddings": 1, "pooling": 1},
        ),
        (
            gguf_model(pooling(3), CHAT),
            [],
            ["embeddings"],
            {"context_tokens": 2_048, "embeddings": 1, "pooling": 3},
        ),
        (gguf.model(), [], ["completions"], {"context_tokens": 2_048}),
    ],
    ids=["writes", "chats", "also embeds", "only embeds", "says nothing"],
)
def test_a_gguf_file_serves_what_it_can(
    person: Person, content: bytes, given: list[str], endpoints: list[str], options: dict[str, int]
) -> None:
    path = person.folder / "My Model.Q4.gguf"
    path.write_bytes(content)
    manifest = add(person, path, *given)["manifest"]
    assert manifest["runtime"] == "llama"
    assert manifest["endpoints"] == [f"/v1/{name}" for name in endpoints]
    assert manifest["options"] == options
    assert [file["name"] for file in manifest["files"]] == ["model.gguf"]
    assert manifest["memory_mb"] > 64


def test_more_context_needs_more_memory(person: Person) -> None:
    path = person.folder / "a.gguf"
    path.write_bytes(gguf_model())
    figures = []
    for tokens in ("64", "4096"):
        manifest = add(person, path, "--context-tokens", tokens)["manifest"]
        figures.append(manifest["memory_mb"])
        person.succeeds("model", "remove", NAME)
    # Keys and values of 16 bits, two layers of width 64: 512 bytes for each token.
    assert figures[1] - figures[0] in (1, 2)


def test_a_model_is_removed_by_name_or_id(person: Person, bert: Path) -> None:
    view = add(person, bert)
    assert "3 of its files are deleted" in person.succeeds("model", "remove", NAME)
    add(person, bert)
    assert "is removed" in person.succeeds("model", "remove", view["model_id"][:12])
    assert person.succeeds("model", "list") == "There are none.\n"
    assert "model list" in person.fails("model_not_found", "model", "remove", NAME)


def test_a_taken_name_is_told_before_anything_is_sent(
    person: Person, gateway: Opened, bert: Path
) -> None:
    add(person, bert)
    stored = set(gateway.stage.objects._objects)
    path = person.folder / "a.gguf"
    path.write_bytes(gguf_model())
    told = person.fails("model_name_taken", "model", "add", NAME, str(path))
    assert "model remove" in told
    assert set(gateway.stage.objects._objects) == stored


def test_a_bad_name_is_told_before_anything_is_sent(
    person: Person, gateway: Opened, bert: Path
) -> None:
    told = person.fails("invalid_value", "model", "add", "no name!", str(bert))
    assert "128 letters" in told
    assert gateway.stage.objects._objects == {}


def zipped(name: str) -> bytes:
    """What torch.save writes, as far as anybody looks."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr(name, pickle.dumps({"a": 1}))
    return body.getvalue()


def outside() -> bytes:
    """A graph with its weights in another file."""
    tensor = weights("w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return model(graph(initializers=[tensor]))


def foreign() -> bytes:
    """A graph with an operator of somebody's own."""
    node = helper.make_node("Evil", ["x", "w"], ["y"], domain="com.example")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    return model(graph(node), opset_imports=opsets)


FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "pickle": ("model.bin", lambda: pickle.dumps({"a": [1.0] * 99}), "safetensors"),
    "torch archive": ("model.pt", lambda: zipped("archive/data.pkl"), "safetensors"),
    "gguf cut off": ("a.gguf", lambda: gguf_model()[:50], "fetch the file again"),
    "gguf without its data": ("a.gguf", lambda: gguf_model()[:-20], "get it again"),
    "gguf with an absurd header": (
        "a.gguf",
        lambda: b"GGUF" + gguf.u32(3) + gguf.u64(2**60) + gguf.u64(1),
        "get it again",
    ),
    "gguf of several files": (
        "a.gguf",
        lambda: gguf_model(("split.count", gguf.UINT32, gguf.u32(3))),
        "merge",
    ),
    "gguf that ranks": ("a.gguf", lambda: gguf_model(pooling(4)), "ranks"),
    "onnx alone": ("a.onnx", lambda: model(encoder_graph()), "folder"),
    "web page": ("a.gguf", lambda: b"<!DOCTYPE html><html>404</html>", "downloaded"),
    "git pointer": ("a.gguf", lambda: b"version https://git-lfs.github.com/spec/v1\n", "lfs pull"),
    "empty": ("a.gguf", lambda: b"", "empty"),
    "noise": ("a.gguf", lambda: bytes(range(97, 123)) * 9, "GGUF, ONNX and safetensors"),
}
CODES = {
    "pickle": "pickle",
    "torch archive": "pickle",
    "gguf cut off": "truncated",
    "gguf without its data": "out_of_bounds",
    "gguf with an absurd header": "absurd_header",
    "gguf of several files": "external_data",
    "gguf that ranks": "model_unsupported",
    "onnx alone": "folder_needed",
    "web page": "unsupported_format",
    "git pointer": "unsupported_format",
    "empty": "truncated",
    "noise": "unknown_format",
}


@pytest.mark.parametrize("case", FILES)
def test_a_refused_file(person: Person, gateway: Opened, case: str) -> None:
    name, content, advice = FILES[case]
    (person.folder / name).write_bytes(content())
    told = refused(person, gateway, CODES[case], person.folder / name)
    assert advice in told


@pytest.mark.parametrize(
    ("content", "code", "advice"),
    [
        (outside, "external_data", "one file that holds its weights"),
        (foreign, "custom_operator", "standard operators"),
        (lambda: model(encoder_graph())[:-9], "truncated", "fetch the file again"),
        (lambda: model(graph()), "graph_unsupported", "input_ids"),
        (lambda: pickle.dumps({"a": 1}), "pickle", "Nothing of it was loaded"),
        (gguf_model, "name_deceives", "gguf"),
    ],
    ids=["external data", "custom operator", "cut off", "no encoder", "pickle", "gguf"],
)
def test_a_refused_graph(
    person: Person, gateway: Opened, content: Callable[[], bytes], code: str, advice: str
) -> None:
    folder = encoder(person.folder / "encoder", content())
    assert advice in refused(person, gateway, code, folder)


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def headless(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((90_000_000).to_bytes(8, "little") + b"{}")


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(zipped("pytorch_model/data.pkl"))


def in_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def only_gguf(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "a.gguf").write_bytes(gguf_model())


def other_architecture(folder: Path) -> None:
    config = msgspec.json.decode((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(msgspec.json.encode({**config, "model_type": "t5"}))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(b"{")


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


BAD_FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut off": (cut_off, "out_of_bounds"),
    "an absurd header": (headless, "absurd_header"),
    "only a pickle": (only_a_pickle, "pickle"),
    "weights in shards": (in_shards, "sharded"),
    "a gguf file": (only_gguf, "file_needed"),
    "another architecture": (other_architecture, "config_unsupported"),
    "no tokenizer": (without("tokenizer.json"), "file_missing"),
    "no configuration": (without("config.json"), "file_missing"),
    "a broken tokenizer": (broken_tokenizer, "malformed"),
    "nothing": (emptied, "no_model"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_refused_folder(person: Person, gateway: Opened, bert: Path, case: str) -> None:
    spoil, code = BAD_FOLDERS[case]
    spoil(bert)
    told = refused(person, gateway, code, bert)
    assert len(told.splitlines()) == 2, "what is wrong, and what to do"


@pytest.mark.parametrize(
    "description", [{"format": 2}, {"tokens_max": 0}, {"truncate": 2}, {"dimensions": "many"}]
)
def test_a_wrong_description(
    person: Person, gateway: Opened, description: dict[str, object]
) -> None:
    folder = encoder(person.folder / "encoder", model(encoder_graph()), **description)
    refused(person, gateway, "description_invalid", folder)


def test_wishes_that_do_not_fit_the_model(person: Person, gateway: Opened, bert: Path) -> None:
    path = person.folder / "a.gguf"
    path.write_bytes(gguf_model())
    for given, model_path in (
        (["--tokens-max", "17"], bert),
        (["--context-tokens", "64"], bert),
        (["--embeddings"], bert),
        (["--tokens-max", "16"], path),
        (["--context-tokens", "4097"], path),
    ):
        refused(person, gateway, "option_unsupported", model_path, *given)


def test_a_folder_that_is_not_there_is_wrong_usage(person: Person) -> None:
    result = person.gives("model", "add", NAME, str(person.folder / "nothing"))
    assert result.exit_code == 2


def test_the_real_model_is_taken(person: Person, shared_file: Callable[[str], Path]) -> None:
    manifest = add(person, shared_file("models/stories260k.gguf"))["manifest"]
    assert manifest["options"] == {"context_tokens": 512}
    assert manifest["endpoints"] == ["/v1/completions"]
    assert manifest["source"] == "stories260K"
