"""A checkpoint in a folder; and for all sources: which files to take, where they may lie, their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from converters import FOLDERS, unnamed
from converters.folder import USUAL, is_index, like, weights_in
from converters.sharded import MAX_INDEX
from zoo.errors import ChecksumError, FormatError, SourceError, UnsafeFile
from zoo.files import write_whole
from zoo.registry import parse_uri
from zoo.sources import NO_HASHES, Progress, cache_root

__all__ = [
    "companions",
    "copy_companions",
    "digest",
    "fetch",
    "inside",
    "module_folders",
    "names_in",
    "safe_name",
    "select",
    "shards",
    "stated",
    "write_text",
]


def fetch(
    uri: str,
    files: Sequence[str] | None = None,
    *,
    sha256: Mapping[str, str] = NO_HASHES,
    progress: Progress | None = None,
    offline: bool | None = None,
) -> Path:
    """Check a folder and give it back; see `zoo.sources.fetch`. A file is given back as it is.

    Raises:
        SourceError: nothing there, no weights, or shards that the index names are missing.
        ChecksumError: a file is not the expected one; it is left alone, being the user's.
        UnsafeFile: a file, link or shard leads out of the folder.
    """
    root = Path(parse_uri(uri).location)
    if root.is_file():
        _check_hash(root, root.name, sha256)
        return root
    if root.with_name(f"{root.name}.index").is_file() and not root.is_dir():
        return root  # the prefix of a TensorFlow checkpoint
    if not root.is_dir():
        raise SourceError("no such file or folder", where=root, do="check the path")
    names = names_in(root)
    for name in names:
        inside(root, name)
    for name in files or ():
        if inside(root, name).is_file() and name not in names:
            names.append(name)
    whole = any(format_.recognises_folder(root) for format_ in FOLDERS)
    whole = whole or (
        weights_in([name for name in names if "/" not in name], root) is None and unnamed(root) is not None
    )
    for name in select(names, files, where=str(root), weights=not whole, modules=_modules_of(root)):
        _check_hash(inside(root, name), name, sha256)
        if is_index(name) and (absent := [one for one in shards(root / name) if not inside(root, one).is_file()]):
            raise SourceError(
                "shards of the checkpoint are missing",
                where=root / name,
                expected=", ".join(absent),
                do="copy them too",
            )
    return root


def inside(root: Path, name: str, *, links: Sequence[Path] | None = None) -> Path:
    """`root / name`, known to lie inside `root` once links are followed.

    Args:
        root: the folder that loading may read from.
        name: a relative path, from an index or a listing that somebody else wrote.
        links: further folders that links inside `root` may lead into; by default those that the hub's cache
            needs where `root` is one of its snapshots (links into `../../blobs`), else none.

    Raises:
        UnsafeFile: an absolute name, one with "..", or a link that leads elsewhere.
    """
    path = root / safe_name(name, where=root)
    real = path.resolve()
    allowed = [root.resolve(), *(_hub_blobs(root) if links is None else (link.resolve() for link in links))]
    if not any(real.is_relative_to(folder) for folder in allowed):
        raise UnsafeFile(
            f"{name!r} leads out of the checkpoint's folder",
            where=root,
            expected="a file inside the folder",
            got=real,
            do="copy the file into the folder if you trust it",
        )
    return path


def safe_name(name: str, where: object) -> str:
    """`name`, known to be a plain relative path on any system.

    Raises:
        UnsafeFile: it is absolute, has a drive, "..", or a NUL.
    """
    windows = PureWindowsPath(name)
    if not name or "\0" in name or windows.drive or windows.root or PurePosixPath(name).root or ".." in windows.parts:
        raise UnsafeFile(
            f"{name!r} is not a path inside the checkpoint",
            where=where,
            expected="a relative path without '..'",
        )
    return name


def select(
    names: Iterable[str],
    files: Sequence[str] | None = None,
    *,
    where: str,
    weights: bool = True,
    modules: Sequence[str] = (),
) -> list[str]:
    """Which of a source's files to take.

    Args:
        names: all its files, as paths with "/" relative to the source's folder.
        files: exactly these instead of the usual choice.
        where: the source, for messages.
        weights: False where the folder itself is the checkpoint, or holds one that is a folder.
        modules: what `module_folders` finds in the source's modules.json.

    Returns:
        Config, tokenizer and processor files, and one set of weights, of the first format that is there
        (see `converters.folder`). Of a sharded set only the index: `shards` then names the rest.

    Raises:
        SourceError: a file of `files` is not there; no weights; or weights that cannot be told apart.
        UnsafeFile: `files` asks for code.
    """
    listing = list(dict.fromkeys(names))
    if files is not None:
        return [_wanted(name, listing, where) for name in files]
    taken = companions(listing, modules)
    optional = not weights or "graph.json.gz" in taken
    taken += _weights([name for name in listing if "/" not in name], where, optional=optional)
    return [name for name in dict.fromkeys(taken) if not _is_code(name)]


def companions(names: Sequence[str], modules: Sequence[str] = ()) -> list[str]:
    """The files that belong to a checkpoint beside its weights: config, tokenizer, chat templates, processor, and the
    folders of sentence-transformers' further modules, with their weights.

    Args:
        names: all its files.
        modules: folders that its modules.json names; without it those with the usual names are taken.
    """
    # An index is for its own format only: it comes with the weights.
    taken = [
        name
        for name in names
        if any(like(name, pattern) for pattern in _COMPANIONS) and "/" not in name and not is_index(name)
    ]
    for name in names:
        folder = name.rpartition("/")[0]
        named = any(f"{folder}/".startswith(f"{module}/") for module in modules)
        worse = name.endswith("/pytorch_model.bin") and f"{folder}/model.safetensors" in names
        if (named or _MODULE.fullmatch(name) or (folder == _TEMPLATES and like(name, "*.jinja"))) and not worse:
            taken.append(name)
    return [name for name in taken if not _is_code(name)]


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what `companions` finds in one folder into another, and the model's card and licence; no package's graph."""
    names = names_in(source)
    papers = [name for name in names if any(like(name, pattern) for pattern in _PAPERS) and "/" not in name]
    for name in dict.fromkeys((*companions(names, _modules_of(source)), *papers)):
        if name not in _GRAPHS:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(inside(source, name), folder / name)


def module_folders(text: str | bytes) -> list[str]:
    """The folders that sentence-transformers' modules.json names, but for the checkpoint's own.

    Whether it is a list of modules is for those to say who use it as one.

    Raises:
        UnsafeFile: a folder outside of the checkpoint's.
    """
    try:
        modules = json.loads(text)
    except (ValueError, RecursionError):
        return []
    paths = [module.get("path") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    names = [path.strip("/") for path in paths if isinstance(path, str) and path.strip("./")]
    return list(dict.fromkeys(safe_name(name, where="modules.json") for name in names))


def shards(index: Path, text: str | bytes | None = None) -> list[str]:
    """The files that a `*.index.json` names, each once, in order.

    Args:
        index: the index's path, read unless `text` is given.
        text: its content.

    Raises:
        FormatError: not an index.
        UnsafeFile: a shard's name leads out of the folder; the shard is named.
    """
    size = index.stat().st_size if text is None else len(text)
    if size > MAX_INDEX:
        raise FormatError("the index is too long", where=index, expected=f"at most {MAX_INDEX} bytes", got=size)
    try:
        weight_map = json.loads(index.read_bytes() if text is None else text)["weight_map"]
        found = list(dict.fromkeys(weight_map.values()))
        if not found or not all(isinstance(name, str) for name in found):
            raise TypeError(f"weight_map of {found[:3]}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(
            "not an index of shards",
            where=index,
            expected='{"weight_map": {tensor: file}}',
            got=f"{type(error).__name__}: {error}",
        ) from None
    return [safe_name(name, where=index) for name in found]


def digest(path: Path, kind: Literal["sha256", "git-sha1"] = "sha256", *, again: bool = False) -> str:
    """A file's hash in hexadecimal, remembered until its size or modification time changes.

    Args:
        path: the file; links are followed.
        kind: "git-sha1" is git's hash of a blob, which names the hub's small files.
        again: read the file whatever is remembered.
    """
    real = path.resolve()
    stat = real.stat()
    stamp = cache_root() / "verified" / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.json"
    key = {"path": str(real), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    try:
        known = json.loads(stamp.read_text("utf-8"))
        known = known if all(known.get(name) == value for name, value in key.items()) else {}
    except (OSError, ValueError, AttributeError):
        known = {}
    if isinstance(known.get(kind), str) and not again:
        return known[kind]
    with real.open("rb") as stream:
        prefix = b"blob %d\0" % stat.st_size
        value = hashlib.file_digest(
            stream, (lambda: hashlib.sha1(prefix, usedforsecurity=False)) if kind == "git-sha1" else "sha256"
        ).hexdigest()
    try:
        write_text(stamp, json.dumps({**known, **key, kind: value}))
    except OSError:
        pass  # A cache that cannot be written costs time, not correctness.
    return value


def stated(root: Path) -> dict[str, str]:
    """File -> "sha256:...", as the record of an earlier conversion or save in this folder states it."""
    try:
        files = json.loads((root / "conversion.json").read_text("utf-8"))["files"]
        found = {name: value if isinstance(value, str) else value["sha256"] for name, value in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {name: f"sha256:{value}" for name, value in found.items() if re.fullmatch("[0-9a-f]{64}", str(value))}


def write_text(path: Path, text: str) -> None:
    """Write a small file in one step, so that no reader ever sees half of it."""
    write_whole(path, text.encode())


_COMPANIONS = (
    "config.json", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "modules.json", "sentence_*_config.json", "config_sentence_transformers.json",
    "bert_config.json", "albert_config.json", "hparams.json", "params.json",  # Google's, OpenAI's and Meta's configs
    "audio_tokenizer_config.json", "image_processor_config.json",
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "normalizer.json", "entity_vocab.json",
    "vocab*", "*.vocab", "target_vocab.json", "merges.txt", "bpe.codes", "dict.txt", "*.model", "*.spm", "*.tiktoken",
    "*.tokenizer", "tekken.json", "emoji.json", "byte_maps.json", "word_shape.json", "word_pronunciation.json",
    "*.jinja", "chat_template.json", "graph.json.gz", "graph.safetensors",
)  # fmt: skip
_TEMPLATES = "additional_chat_templates"
_PAPERS = ("README.md", "LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
_GRAPHS = ("graph.json.gz", "graph.safetensors")
_MODULE = re.compile(r"(?P<folder>\d+_\w+)/(config\.json|model\.safetensors|pytorch_model\.bin)")
_CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh")


def _wanted(name: str, listing: list[str], where: str) -> str:
    if _is_code(safe_name(name, where=where)):
        raise UnsafeFile(f"{name!r} is code: it is never fetched", where=where, do="leave it out of `files`")
    if name not in listing:
        raise SourceError(f"there is no file {name!r}", where=where, got=_some(listing))
    return name


def _weights(names: list[str], where: str, *, optional: bool) -> list[str]:
    found = weights_in(names, where)
    if found is not None:
        data = None
        if found.endswith(".index"):
            data = re.escape(found.removesuffix(".index")) + r"\.data-\d+-of-\d+"
        elif found == "model.json":
            data = r"group\d+-shard\d+of\d+(\.bin)?"  # TensorFlow.js
        return [found, *(name for name in names if data and re.fullmatch(data, name))]
    if optional:
        return []
    raise SourceError(
        "no weights there",
        where=where,
        expected=f"{', '.join(USUAL)} or another checkpoint format, or graph.json.gz",
        got=_some(names) or "nothing",
        do="if they are in a subfolder, give the path of that folder; of a local copy where they are on a hub",
    )


def _check_hash(path: Path, name: str, sha256: Mapping[str, str]) -> None:
    expected = sha256.get(name)
    if expected is not None and (got := digest(path)) != expected:
        raise ChecksumError(
            f"{name} is not the file it should be",
            where=path,
            expected=f"sha256 {expected}",
            got=f"sha256 {got}",
            do="copy or download it again; load it by its path to take it as it is",
        )


def names_in(root: Path) -> list[str]:
    """The files of a folder that `select` looks at: not those of deeper folders, which may be anything, but for the
    folders of modules and chat templates.
    """
    names = [path.name for path in root.iterdir() if path.is_file()]
    for folder in (*root.glob("[0-9]*_*/"), *root.glob(f"{_TEMPLATES}/")):
        names += [f"{folder.name}/{path.name}" for path in folder.iterdir() if path.is_file()]
    for module in _modules_of(root):
        if (root / module).is_dir():
            inside(root, module)
            names += [path.relative_to(root).as_posix() for path in (root / module).rglob("*") if path.is_file()]
    return sorted(set(names))


def _modules_of(root: Path) -> list[str]:
    path = root / "modules.json"
    return module_folders(inside(root, "modules.json").read_bytes()) if path.is_file() else []


def _hub_blobs(root: Path) -> list[Path]:
    """Where the links of a snapshot in the hub's cache lead: its repository's blobs, and shared ones."""
    root = root.resolve()
    for folder in (root, *root.parents):
        repo = folder.parent.parent
        if folder.parent.name == "snapshots" and re.match(r"(models|datasets|spaces)--", repo.name):
            shared = repo.parent / "blobs"
            marked = (shared / ".huggingface-shared-blobs").is_file()
            return [repo / "blobs", shared] if marked else [repo / "blobs"]
    return []


def _is_code(name: str) -> bool:
    return name.lower().endswith(_CODE)


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
