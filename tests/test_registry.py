"""registry.json against its schema; names, aliases and references."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest

from zoo import registry
from zoo.errors import ConfigError, RegistryError, SourceError, UnknownModel, UnsafeFile, ZooError
from zoo.registry import Entry, SourceRef

ROOT = Path(__file__).parent.parent
SHA = "ab" * 32

BERT = {
    "aliases": ["bert-base-uncased", "google-bert/bert-base-uncased"],
    "model_type": "bert",
    "architecture": "BertForMaskedLM",
    "task": "fill-mask",
    "modality": "text",
    "sources": ["wheel://some-wheel==1.0/some/folder", "hf://google-bert/bert-base-uncased"],
    "files": {"model.safetensors": {"sha256": SHA}},
    "license": "apache-2.0",
    "config": {"sources": ["github:x/y"], "parameters": {"published": 110000000, "source": "paper"}},
}
VIT = {"model_type": "vit", "task": "image-classification", "modality": "vision"}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((ROOT / "registry.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package folder whose registry holds two models."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "registry.json").write_text(json.dumps(of(**{"bert-base": BERT, "vit-base": VIT})))
    monkeypatch.setattr(registry, "_PACKAGE", package)
    clear()
    yield package
    clear()


def of(**models: object) -> dict[str, object]:
    return {"version": 1, "models": models}


def clear() -> None:
    registry.entries.cache_clear()
    registry._index.cache_clear()


# The real registry


def test_real_registry_fits_its_schema(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(json.loads((ROOT / "registry.json").read_text()))


def test_real_registry_loads_and_every_source_and_name_resolves() -> None:
    assert registry.entries()
    for name, entry in registry.entries().items():
        assert registry.find(name) is entry
        assert all(registry.parse(alias.upper()) is entry for alias in entry.aliases)
        assert {registry.parse_uri(uri).kind for uri in entry.sources} <= {"hub", "wheel"}


def test_real_registry_configs_are_readable() -> None:
    for entry in registry.entries().values():
        if entry.has_config:
            assert entry.config().get("model_type", entry.model_type) == entry.model_type


# Entries


def test_entry_holds_what_the_file_says(small: Path) -> None:
    entry = registry.find("bert-base")
    assert entry == Entry(
        name="bert-base",
        model_type="bert",
        architecture="BertForMaskedLM",
        task="fill-mask",
        modality="text",
        aliases=("bert-base-uncased", "google-bert/bert-base-uncased"),
        sources=("wheel://some-wheel==1.0/some/folder", "hf://google-bert/bert-base-uncased"),
        files={"model.safetensors": SHA},
        license="apache-2.0",
        config_sources=("github:x/y",),
        published_parameters=110000000,
        parameters_source="paper",
    )
    vit = registry.find("vit-base")
    assert (vit.architecture, vit.license, vit.published_parameters, vit.sources) == (None, None, None, ())
    assert len({entry, vit, registry.find("bert-base")}) == 2  # hashable


def test_entries_cannot_be_changed(small: Path) -> None:
    entry = registry.find("bert-base")
    with pytest.raises(AttributeError):
        entry.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        entry.files["config.json"] = SHA  # type: ignore[index]
    with pytest.raises(TypeError):
        registry.entries()["other"] = entry  # type: ignore[index]


def test_config_is_read_from_the_package(small: Path) -> None:
    entry = registry.find("bert-base")
    assert not entry.has_config
    with pytest.raises(ConfigError) as missing:
        entry.config()
    assert "bert-base" in str(missing.value) and "hf://google-bert/bert-base-uncased" in str(missing.value)
    (small / "configs").mkdir()
    entry.config_path.write_text('{"hidden_size": 768}')
    assert entry.has_config and entry.config() == {"hidden_size": 768}
    entry.config_path.write_text("[768]")
    with pytest.raises(ConfigError, match="list"):
        entry.config()
    entry.config_path.write_text('{"hidden_size":')
    with pytest.raises(ConfigError, match=r"bert-base\.json"):
        entry.config()


def test_the_root_is_looked_in_after_the_package(small: Path) -> None:
    (small / "registry.json").rename(small.parent / "registry.json")
    clear()
    assert list(registry.entries()) == ["bert-base", "vit-base"]
    (small.parent / "registry.json").unlink()
    clear()
    with pytest.raises(RegistryError, match=r"registry\.json is missing"):
        registry.entries()


# Names and references


@pytest.mark.parametrize("name", ["bert-base", "BERT-Base", "bert-base-uncased", "Google-BERT/bert-base-uncased"])
def test_names_and_aliases_in_any_case(small: Path, name: str) -> None:
    assert registry.find(name).name == "bert-base"
    assert registry.parse(name) is registry.find(name)


def test_near_names_are_suggested(small: Path) -> None:
    with pytest.raises(UnknownModel) as error:
        registry.find("bert-bse")
    message = str(error.value)
    assert "'bert-bse'" in message and "near: bert-base, bert-base-uncased" in message
    assert "hf://org/name" in message and "wheel://DIST==VERSION" in message and "folder" in message
    with pytest.raises(LookupError) as other:
        registry.find("zzzzzzzz")
    assert "near" not in str(other.value)


def test_a_repository_without_its_scheme_is_suggested(small: Path) -> None:
    with pytest.raises(UnknownModel, match="hf://some-org/some-model"):
        registry.parse("some-org/some-model")


@pytest.mark.parametrize(
    ("uri", "ref"),
    [
        ("hf://org/name", ("hub", "org/name", None, "")),
        ("hf://gpt2", ("hub", "gpt2", None, "")),
        ("hf://org/name@refs/pr/1", ("hub", "org/name", "refs/pr/1", "")),
        ("wheel://a-b==1.0.post1/m/f/", ("wheel", "a-b", "1.0.post1", "m/f")),
        ("wheel://a_b==2022.4.26", ("wheel", "a_b", "2022.4.26", "")),
    ],
)
def test_uris(uri: str, ref: tuple[str, str, str | None, str]) -> None:
    kind, location, revision, member = ref
    expected = SourceRef(kind, uri, location, revision, member)  # type: ignore[arg-type]
    assert registry.parse(uri) == expected == registry.parse_uri(uri)


@pytest.mark.parametrize(
    ("uri", "kind", "fact"),
    [
        ("hf://", SourceError, "hf://org/name"),
        ("hf://a/b/c", SourceError, "hf://a/b/c"),
        ("hf://../b", SourceError, "hf://org/name"),
        ("hf://a/b@../../x", SourceError, "hf://org/name@revision"),
        ("hf://a/b@x/../../y", SourceError, "hf://org/name@revision"),
        ("wheel://name/folder", SourceError, "pin the version"),
        ("wheel://name>=1/folder", SourceError, "wheel://DIST==VERSION"),
        ("wheel://name==1.*/folder", SourceError, "pin the version"),
        ("wheel://-r==1/folder", SourceError, "wheel://DIST==VERSION"),
        ("wheel://name==1/../x", UnsafeFile, "../x"),
        ("s3://bucket/key", SourceError, "'s3'"),
    ],
)
def test_malformed_uris(uri: str, kind: type[ZooError], fact: str) -> None:
    with pytest.raises(kind) as error:
        registry.parse(uri)
    assert fact in str(error.value) and uri in str(error.value)


def test_paths(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    expected = SourceRef("local", str(folder), str(folder))
    assert registry.parse(folder) == registry.parse(str(folder)) == expected
    monkeypatch.chdir(tmp_path)
    assert registry.parse("checkpoint") == expected
    # A name wins over a folder of that name; as a PathLike or with "./" it is the folder.
    (tmp_path / "bert-base").mkdir()
    assert isinstance(registry.parse("bert-base"), Entry)
    for path in (Path("bert-base"), f".{os.sep}bert-base"):
        ref = registry.parse(path)
        assert isinstance(ref, SourceRef) and ref.location == str(tmp_path / "bert-base")


def test_paths_where_nothing_is(small: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "no", str(tmp_path / "no"), "./no"):
        with pytest.raises(SourceError, match="no such file or folder"):
            registry.parse(path)
    with pytest.raises(UnknownModel):
        registry.parse("")


# Wrong registries: what the schema refuses, and what loading refuses, each naming entry and field


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "unknown field": ({"m": VIT | {"stars": 5}}, "m.stars"),
    "no task": ({"m": {"model_type": "vit", "modality": "vision"}}, "m.task"),
    "empty task": ({"m": VIT | {"task": ""}}, "m.task"),
    "name with a slash": ({"../m": VIT}, "../m"),
    "source without a pin": ({"m": VIT | {"sources": ["wheel://a/b"]}}, "m.sources"),
    "source of another kind": ({"m": VIT | {"sources": ["https://example.org/x"]}}, "m.sources"),
    "sources not a list": ({"m": VIT | {"sources": "hf://a/b"}}, "m.sources"),
    "short hash": ({"m": VIT | {"files": {"w.bin": {"sha256": "abc"}}}}, "m.files.w.bin.sha256"),
    "no hash": ({"m": VIT | {"files": {"w.bin": {}}}}, "m.files.w.bin.sha256"),
    "number as text": ({"m": VIT | {"config": {"parameters": {"published": "1e6", "source": "s"}}}}, "published"),
    "license not text": ({"m": VIT | {"license": None}}, "m.license"),
    "alias not text": ({"m": VIT | {"aliases": [1]}}, "m.aliases"),
    "entry not an object": ({"m": []}, "m"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_entries(case: str, tmp_path: Path, validator: jsonschema.Draft202012Validator) -> None:
    models, where = WRONG[case]
    assert not validator.is_valid(of(**models))
    (tmp_path / "r.json").write_text(json.dumps(of(**models)))
    with pytest.raises(RegistryError) as error:
        registry.load(tmp_path / "r.json")
    assert where in str(error.value.where)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("{", "r.json"),
        ('{"version": 2, "models": {}}', "version 2"),
        ("[]", "list"),
        ('{"version": 1, "models": {"m": {}, "m": {}}}', "'m' stands there twice"),
    ],
)
def test_wrong_files(text: str, fact: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(RegistryError) as error:
        registry.load(tmp_path / "r.json")
    assert fact in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot be read"):
        registry.load(tmp_path / "none.json")


def test_a_name_means_one_model(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(of(a=VIT | {"aliases": ["Same"]}, b=VIT | {"aliases": ["same"]})))
    with pytest.raises(RegistryError) as error:
        registry.load(tmp_path / "r.json")
    assert "'same'" in str(error.value) and "b.aliases" in str(error.value) and "'a'" in str(error.value)


@pytest.mark.parametrize("call", ["registry.entries()", "registry.parse('hf://org/name')", "sources.cache_root()"])
def test_nothing_heavy_is_imported(call: str, run_python: Callable[[str], str]) -> None:
    # Every one of these costs more than the whole registry.
    heavy = ["huggingface_hub", "numpy", "safetensors", "rich", "torch", "tensorflow", "jax", "keras"]
    code = f"import sys; from zoo import registry, sources; {call}; print([m for m in {heavy} if m in sys.modules])"
    assert run_python(code) == "[]"


@pytest.fixture
def run_python() -> Callable[[str], str]:
    def run(code: str) -> str:
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    return run
