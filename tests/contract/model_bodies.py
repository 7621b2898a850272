"""Small model files and the manifests that name them, for tests that publish models."""

import hashlib

import httpx
import msgspec
import numpy as np
from onnx import TensorProto, helper
from safetensors.numpy import save

from terafleet.protocol.admin import ModelCreate, ModelView, model_file_path
from terafleet.protocol.manifest import Manifest, ManifestFile
from terafleet.protocol.openai import EMBEDDINGS

TOKENIZER = b'{"model": {"vocab": {"a": 0}}}'


def onnx_body(seed: int = 0) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        f"graph{seed}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [helper.make_tensor("w", TensorProto.UINT8, [8], bytes(8), True)],
    )
    return bytes(helper.make_model(graph, ir_version=10).SerializeToString())


def safetensors_body() -> bytes:
    return bytes(save({"a": np.ones(300_000, np.float32)}))


def entry(name: str, body: bytes) -> ManifestFile:
    return ManifestFile(name, len(body), hashlib.sha256(body).hexdigest())


def manifest_of(files: dict[str, bytes], name: str = "mini", runtime: str = "onnx") -> Manifest:
    return Manifest(
        name=name,
        runtime=runtime,
        endpoints=(EMBEDDINGS,),
        memory_mb=100,
        files=tuple(entry(file_name, body) for file_name, body in files.items()),
        options={"tokens_max": 256},
        source="a test",
    )


def mini(seed: int = 0) -> dict[str, bytes]:
    return {"model.onnx": onnx_body(seed), "tokenizer.json": TOKENIZER}


async def put_files(client: httpx.AsyncClient, files: dict[str, bytes]) -> None:
    for name, body in files.items():
        path = model_file_path(entry(name, body).sha256)
        response = await client.put(path, content=body)
        assert response.status_code == 200, response.text


async def create(client: httpx.AsyncClient, manifest: Manifest) -> httpx.Response:
    body = msgspec.json.encode(ModelCreate(manifest))
    return await client.post("/admin/v1/models", content=body)


async def publish(
    client: httpx.AsyncClient, files: dict[str, bytes], name: str = "mini"
) -> ModelView:
    await put_files(client, files)
    response = await create(client, manifest_of(files, name))
    assert response.status_code == 201, response.text
    return msgspec.json.decode(response.content, type=ModelView)
