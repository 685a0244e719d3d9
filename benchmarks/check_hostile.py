"""Damaged and hostile files of every form, in their thousands: what reading them does to the process that reads.

    python benchmarks/check_hostile.py --seconds 1200 --write   # all forms in turn, until the time is over
    python benchmarks/check_hostile.py --seconds 120 --check    # .ci/run's sample; exit code 1 if something is wrong
    python benchmarks/check_hostile.py --case config:17         # one case again, with its traceback

A tiny model is written in each form; each case changes one of its files: bits, bytes, pieces, lengths, members of
archives (with checksums that fit), fields of JSON. Then the files are opened and read, and every third time loaded and
converted, in a process of its own, forked from one that has done the imports. A graph is run, too, on NumPy and on the
native engine; of the form "work" its numbers become huge, or operations that grow are put in. What came of it, by form:

    refused   an error of ours                      same      all as it was: the change meant nothing
    other     other names, shapes, dtypes: a model does not take those; or what was written is right, and something else
    silent    the same tensors with other values: a damage that the form cannot tell (README says which can)
    raw       an exception that is none of ours     signal    the process ended
    hang      over the time allowed                 memory    over the memory allowed, besides whatever came of it

`raw`, `signal`, `hang` and `memory` must be 0. A case is known by its form and number: the same changes every time.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", RUST_BACKTRACE="0")
ROOT = Path(__file__).parents[1]
sys.path[1:1] = [str(ROOT / "tests"), str(ROOT / "tests" / "attacks")]

from common import record  # noqa: E402

MEMORY = 256 << 20
SECONDS = {"config": 60.0, "graph": 20.0, "work": 20.0}
OTHERS = 20.0
BAD = ("raw", "signal", "hang", "memory")
CONVERTED = ("safetensors", "torch", "tf-h5", "flax", "npz", "keras-model", "tf-checkpoint", "orbax", "gguf")
FORMS = (
    *CONVERTED,
    *("sharded", "torch-legacy", "npz-deflated", "h5-chunked", "onnx", "tfjs", "llama2c"),
    *("graph", "work", "config", "tokenizer", "settings"),
)
BESIDE = ("graph", "work", "config", "tokenizer", "settings")
"""Files beside weights: whatever is changed there may change what comes out, so nothing there is silent."""
NAMES = {"tokenizer": ("tokenizer.json",), "config": ("config.json",)} | {
    **dict.fromkeys(("graph", "work"), ("graph.json.gz",)),
    "settings": (
        *("tokenizer_config.json", "special_tokens_map.json", "modules.json", "sentence_bert_config.json"),
        *("config_sentence_transformers.json", "1_Pooling/config.json"),
    ),
    "sharded": ("model.safetensors.index.json",),
}
"""The files of which one is changed; of other forms, those that hold weights."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120, help="for all forms together")
    parser.add_argument("--forms", nargs="*", default=FORMS, choices=FORMS)
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each form")
    parser.add_argument("--case", metavar="FORM:NUMBER")
    parser.add_argument("--keep", type=Path, help="a folder for what was bad, and for --case")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--seeds", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.seeds:
        make_seeds(given.seeds)
        return
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        os.environ["ZOO_CACHE"] = os.environ["HF_HOME"] = f"{folder}/cache"
        seeds = Path(folder) / "seeds"
        # Whoever has run a model has threads, which a fork would lose.
        subprocess.run([sys.executable, __file__, "--seeds", str(seeds)], check=True)
        import torch  # noqa: F401
        import transformers.models  # noqa: F401

        if given.case:
            form, _, number = given.case.partition(":")
            print(json.dumps(one(seeds, form, int(number), given.keep, True), indent=1))
            return
        found = campaign(seeds, given.forms, given.first, given.seconds, given.keep)
    total = Counter({kind: sum(row["counts"].get(kind, 0) for row in found.values()) for kind in BAD})
    print(f"\n{sum(row['cases'] for row in found.values())} cases; " + ", ".join(f"{total[k]} {k}" for k in BAD))
    if given.write:
        print("written to", record("hostile", {"seconds": given.seconds, "total": total, "forms": found}).name)
    sys.exit(given.check and any(total.values()))


def campaign(seeds: Path, forms: list[str], first: int, seconds: float, keep: Path | None) -> dict[str, Any]:
    """Cases of the forms in turn, each form for its share of the time; forms that are read in a process have few."""
    found: dict[str, Any] = {}
    end = time.monotonic() + seconds
    for position, form in enumerate(forms):
        share = (end - time.monotonic()) / (len(forms) - position)
        until, number = time.monotonic() + share, first
        counts: Counter[str] = Counter()
        bad: dict[str, dict[str, Any]] = {}
        most = 0.0
        while time.monotonic() < until:
            row = one(seeds, form, number, keep)
            kinds = [row["kind"], *(["memory"] if row["memory"] > MEMORY else [])]
            counts.update(kinds)
            most = max(most, row["memory"])
            for kind in set(kinds) & set(BAD):
                bad.setdefault(f"{kind}: {row['why']}", {"cases": []})["cases"].append(f"{form}:{number}")
            number += 1
        found[form] = {"cases": number - first, "counts": dict(counts), "memory": int(most), "bad": bad}
        said = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        print(f"{form:14s} {number - first:6d} cases: {said}; at most {most / 1e6:.0f} MB", flush=True)
        for why, row in bad.items():
            print(f"    {len(row['cases'])} x {why}, such as {row['cases'][0]}", flush=True)
            row["cases"] = row["cases"][:5]
    return found


def one(seeds: Path, form: str, number: int, keep: Path | None = None, show: bool = False) -> dict[str, Any]:
    """What became of one case."""
    with tempfile.TemporaryDirectory(prefix="case-") as scratch:
        folder = Path(scratch) / "m"
        shutil.copytree(seeds / form, folder)
        damage = change(folder, form, random.Random(f"{form}:{number}"))
        expected = json.loads((seeds / f"{form}.json").read_text())
        row = apart(folder, form, number % 3 == 0, show, expected)
        if row["kind"] == "silent" and not damage:
            row["kind"] = "other"
        if keep is not None and (show or row["kind"] in BAD or row["memory"] > MEMORY):
            shutil.copytree(folder, keep / f"{form}-{number}", dirs_exist_ok=True)
        return row


def apart(folder: Path, form: str, load: bool, show: bool, expected: dict[str, str]) -> dict[str, Any]:
    """`read` in a process of its own, ended when its time is over."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if not show:
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, 1)
                os.dup2(null, 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            limit = status("VmSize") + (6 << 30)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            before = status("VmRSS")
            row = read(folder, form, load, show, expected)
            os.write(writer, json.dumps({**row, "memory": max(0, status("VmHWM") - before)}).encode())
        finally:
            os._exit(0)
    os.close(writer)
    allowed = SECONDS.get(form, OTHERS)
    with os.fdopen(reader, "rb") as pipe:
        ready, _, _ = select.select([pipe], [], [], allowed)
        if not ready:
            os.kill(child, signal.SIGKILL)
        raw = pipe.read() if ready else b""
    _, state = os.waitpid(child, 0)
    if raw:
        return json.loads(raw)
    if not ready:
        return {"kind": "hang", "why": f"over {allowed:.0f} s", "memory": 0}
    return {"kind": "signal", "why": f"signal {os.WTERMSIG(state)}" if os.WIFSIGNALED(state) else "died", "memory": 0}


def read(folder: Path, form: str, load: bool, show: bool, expected: dict[str, str]) -> dict[str, Any]:
    from zoo.errors import ZooError

    try:
        return {"kind": compared(expected, outcome(folder, form, load)), "why": ""}
    except ZooError as error:
        try:
            str(error).encode()
        except UnicodeError:
            return {"kind": "raw", "why": f"{type(error).__name__} that cannot be shown"}
        if show:
            print(error, file=sys.stderr)
        return {"kind": "refused", "why": type(error).__name__}
    except BaseException as error:
        if show:
            traceback.print_exc()
        place = next(
            (
                f
                for f in reversed(traceback.extract_tb(error.__traceback__))
                if "/zoo/" in f.filename or "/converters/" in f.filename
            ),
            None,
        )
        where = f"{Path(place.filename).name}:{place.name}" if place else "?"
        return {"kind": "raw", "why": f"{type(error).__name__} in {where}: {str(error)[:80]!a}"}


def outcome(folder: Path, form: str, load: bool) -> dict[str, str]:
    """Digests of what is found."""
    import zoo

    if form in BESIDE:
        model = zoo.load(folder, "numpy", offline=True)
        if form in ("tokenizer", "settings"):
            found = {"embeddings": digest(model.embed(["ab cd", "a b c d unknown", ""]))}
        else:
            out = model(input_ids=[[1, 2, 3, 4, 5]])
            found = {name: digest(value) for name, value in out.items()}
            if form != "config":
                zoo.load(folder, "native", offline=True)(input_ids=[[1, 2, 3, 4, 5]])
        return found
    found = contents(folder)
    if load and (folder / "config.json").is_file():
        zoo.load(folder, "numpy", strict=False, offline=True)
        zoo.convert(folder, folder.parent / "out", "safetensors", offline=True)
    return found


def contents(folder: Path) -> dict[str, str]:
    from converters import open_checkpoint
    from converters.dialects import derived_config, derived_tokenizer, dialect_of

    with open_checkpoint(folder) as checkpoint:
        dialect_of(checkpoint)
        found = {name: digest(array) for name, array in checkpoint.items()}
        derived_config(checkpoint)
        derived_tokenizer(checkpoint)
        return found


def compared(expected: dict[str, str], found: dict[str, str]) -> str:
    if found == expected:
        return "same"
    kinds = ({name: value.partition(":")[0] for name, value in one.items()} for one in (expected, found))
    return "silent" if next(kinds) == next(kinds) else "other"


# Changes


def change(folder: Path, form: str, draw: random.Random) -> bool:
    """Changes one file in a folder, in a way that is drawn; whether it is damage, not a file that was written so."""
    if form == "tokenizer":
        shutil.copy(draw.choice(sorted((folder / "others").iterdir())), folder / "tokenizer.json")
    beside = ("config.json", "tokenizer.json", "generation_config.json")
    named = [folder / name for name in NAMES.get(form, ())]
    every = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and str(path.relative_to(folder)) not in beside
    ]
    path = draw.choice([path for path in named or every if path.is_file()])
    raw = path.read_bytes()
    inside = draw.random() < 0.6
    if path.suffix == ".json" or path.name in (".zarray", "_METADATA", "zarr.json"):
        raw = changed_json(raw, draw) if inside else changed(raw, draw)
    elif form == "work":
        packed = zlib.compressobj(1, wbits=31)
        raw = packed.compress(grown(zlib.decompress(raw, 31), draw)) + packed.flush()
    elif path.suffix == ".gz" and inside:
        text = zlib.decompress(raw, 31)
        packed = zlib.compressobj(1, wbits=31)
        raw = packed.compress(changed_json(text, draw) if draw.random() < 0.8 else changed(text, draw)) + packed.flush()
    elif raw[:4] == b"PK\x03\x04" and inside:
        raw = changed_archive(raw, draw)
    elif path.suffix == ".safetensors" and inside:
        size = int.from_bytes(raw[:8], "little")
        header = changed_json(raw[8 : 8 + size], draw)
        raw = len(header).to_bytes(8, "little") + header + raw[8 + size :]
    else:
        inside, raw = False, changed(raw, draw)
    path.write_bytes(raw)
    return form not in BESIDE and not inside


def changed(raw: bytes, draw: random.Random) -> bytes:
    """Bytes with one to eight changes, half of them near the ends, where names and sizes are."""
    data = bytearray(raw)
    for _ in range(draw.choice([1, 1, 1, 2, 4, 8])):
        if not data:
            return bytes(draw.randbytes(draw.randrange(9)))
        near = min(len(data), 2048)
        at = draw.choice([draw.randrange(len(data)), draw.randrange(near), len(data) - 1 - draw.randrange(near)])
        size = draw.choice([1, 2, 4, 8, 64, 1024])
        how = draw.randrange(9)
        if how <= 2:
            data[at] ^= 1 << draw.randrange(8)
        elif how == 3:
            number = draw.choice(
                [0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
            )
            width = draw.choice([1, 2, 4, 8])
            data[at : at + width] = (number % 256**width).to_bytes(width, draw.choice(["little", "big"]))
        elif how == 4:
            del data[at : at + size]
        elif how == 5:
            data[at:at] = draw.choice([bytes(size), b"\xff" * size, draw.randbytes(size), bytes(data[at : at + size])])
        elif how == 6:
            data[at : at + size] = bytes(len(data[at : at + size]))
        elif how == 7:
            other = draw.randrange(len(data))
            data[at : at + size] = data[other : other + size]
        else:
            del data[at:]
    return bytes(data)


def changed_archive(raw: bytes, draw: random.Random) -> bytes:
    """A zip archive one of whose members was changed before it was packed: its checksum fits."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w", draw.choice([0, 8])) as new:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
        # What describes tensors is small, and wins half of the time.
        small = [number for number, (_, data) in enumerate(members) if len(data) < 4096]
        chosen = draw.choice(small) if small and draw.random() < 0.5 else draw.randrange(len(members))
        for number, (name, data) in enumerate(members):
            if number == chosen:
                how = draw.randrange(8)
                data = data if how < 2 else changed_json(data, draw) if name.endswith(".json") else changed(data, draw)
                name = draw.choice(["../" + name, name + "\x1b[2J", "a" * 3000, "/" + name]) if how == 0 else name
                if how == 1:
                    continue
            new.writestr(name, data)
    return out.getvalue()


VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**9, 10**30, -(10**9), 0.5, 1e308, 1e-320),
    *(float("nan"), float("inf"), "", "a", "\ud800", "\x1b[31m\x1b]0;x\x07", "../../etc/passwd", "/etc/passwd"),
    *("x" * 100_000, "\0", "(a*)*b" * 9, "\u202e"),
    *([], {}, [[]], {"a": {}}, [None], [0] * 70, [1] * 100_000, {str(i): i for i in range(3000)}, "@nested"),
]  # fmt: skip


def changed_json(raw: bytes, draw: random.Random) -> bytes:
    """JSON with one to three of its values taken away, exchanged, repeated, renamed or replaced."""
    tree = json.loads(raw)
    for _ in range(draw.choice([1, 1, 2, 3])):
        places = list(places_in(tree))
        if not places:
            break
        holder, key = draw.choice(places)
        how = draw.randrange(10)
        if how <= 5:
            holder[key] = draw.choice(VALUES)
        elif how == 6:
            del holder[key]
        elif how == 7:
            other, there = draw.choice(places)
            at_hand = there in other if isinstance(other, dict) else there < len(other)
            holder[key] = json.loads(json.dumps(other[there])) if at_hand else None
        elif how == 8 and isinstance(holder, dict):
            holder[draw.choice([key + "x", "", "\ud800", "\x1b[2J", "__class__", "_attn_implementation"])] = holder.pop(
                key
            )
        elif isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = draw.choice(
                [holder[key] + 1, holder[key] * 1000, -holder[key], str(holder[key]), [holder[key]]]
            )
        else:
            holder[key] = [holder[key]] * draw.choice([2, 300])
    text = json.dumps(tree)
    if "@nested" in text:
        deep = draw.choice(["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
        text = text.replace('"@nested"', deep)
    return text.encode()


SIZES = (-1, 0, 2, 1000, 4096, 10**6, 10**9, 10**12, 2**62, 10**30)
GROWING: tuple[tuple[tuple[Any, ...], ...], ...] = (
    *(((("repeat", "%", [size, *[1] * rank]),)) for size in SIZES for rank in (1, 2, 3)),
    *(((("view", "%", [-1]), ("expand", "%", [size, -1]), ("exp", "%"))) for size in SIZES),
    *(((("new_full", "%", [size, size // 3], 1.0),)) for size in SIZES),
    *(((("view", "%", [-1]), ("constant_pad_nd", "%", [size, 7]))) for size in SIZES),
    *(((("view", "%", [1, 1, -1]), ("adaptive_avg_pool1d", "%", [size]))) for size in SIZES),
    *(((("view", "%", [1, 1, -1, 1]), ("upsample_nearest2d.vec", "%", [size, 9], None))) for size in SIZES),
    *(((("view", "%", [-1]), ("unfold", "%", 0, size, 1))) for size in (2, 7, 30, 100)),
    *((("view", "%", [-1]), *[("cat", ["%", "%"], 0)] * times) for times in (3, 20, 40)),
    *((("view", "%", [-1, 1]), ("expand", "%", [-1, size]), *[("matmul", "%", "%T")] * 3) for size in SIZES),
    *((("sym_size.int", "%", 0), *[("sym.pow", "%", size)] * 2, ("full", ["%"], 1.0)) for size in SIZES),
    *((("sym_size.int", "%", 0), *[("sym.mul", "%", "%")] * times, ("full", ["%"], 1.0)) for times in (4, 9, 60)),
)
"""Operations one after another, each of the last one's result."""


def grown(raw: bytes, draw: random.Random) -> bytes:
    """A graph's JSON with larger numbers among the arguments, and with operations put in whose results grow."""
    data = json.loads(raw)
    nodes = data["nodes"]
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = draw.randrange(len(nodes))
        if draw.random() < 0.5:
            places = [(h, k) for h, k in places_in(nodes[at][1]) if type(h[k]) is int]
            if places:
                holder, key = draw.choice(places)
                holder[key] = draw.choice(SIZES)
            continue
        name, dtype, shape = nodes[at][3][0]
        if not dtype.startswith("float"):
            continue
        last, made = "%" + name, []
        for number, (op, *args) in enumerate(draw.choice(GROWING)):
            new = f"{name}.{len(nodes)}.{number}"
            if "%T" in args:
                made.append(["t", [last], {}, [[f"{new}t", dtype, ["a", "b"]]]])
            text = json.dumps(args).replace('"%T"', json.dumps(f"%{new}t")).replace('"%"', json.dumps(last))
            made.append([op, json.loads(text), {}, [[new, "size" if op.startswith("sym") else dtype, ["a", "b"]]]])
            last = f"%{new}"
        mean, total = f"{name}.{len(nodes)}.mean", f"{name}.{len(nodes)}.sum"
        made.append(["mean", [last], {}, [[mean, dtype, []]]])
        made.append(["add.Tensor", ["%" + name, "%" + mean], {}, [[total, dtype, shape]]])
        later = json.dumps(nodes[at + 1 :]).replace(json.dumps("%" + name), json.dumps("%" + total))
        nodes[at + 1 :] = [*made, *json.loads(later)]
    return json.dumps(data).encode()


def places_in(tree: Any, limit: int = 5000) -> Iterator[tuple[Any, Any]]:
    """(dict or list, key) of the values of a tree, those near its root first."""
    rows = [tree]
    while rows and limit > 0:
        holder = rows.pop(0)
        keys = (
            list(holder)
            if isinstance(holder, dict)
            else range(min(len(holder), 50))
            if isinstance(holder, list)
            else ()
        )
        for key in keys:
            yield holder, key
            limit -= 1
            rows.append(holder[key])


# Seeds


def make_seeds(root: Path) -> None:
    """A tiny model in every form, and what is read from each."""
    import checkpoints
    import numpy as np
    import torch

    import zoo
    from converters import open_checkpoint

    root.mkdir(parents=True)
    base = checkpoints.save(root / "base", "bert")
    write_tokenizers(root / "others")
    shutil.copy(root / "others" / "words.json", base / "tokenizer.json")
    llama = checkpoints.save(root / "llama", "llama")
    for form in CONVERTED:
        zoo.convert(llama if form == "gguf" else base, root / form, form)
        (root / form / "conversion.json").unlink()
    with open_checkpoint(base) as checkpoint:
        arrays = {name: np.array(array) for name, array in checkpoint.items()}
    some = dict(list(arrays.items())[:6])
    zoo.convert(base, root / "sharded", "safetensors", shard_size=20_000)
    for form in ("torch-legacy", "npz-deflated", "h5-chunked", "onnx", "tfjs", "llama2c"):
        (root / form).mkdir()
        if form in ("torch-legacy", "npz-deflated"):
            shutil.copy(base / "config.json", root / form)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(tensors, root / "torch-legacy" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    np.savez_compressed(root / "npz-deflated" / "model.npz", **arrays)
    write_h5(root / "h5-chunked" / "model.h5", some)
    write_others(root, some)
    zoo.load(base, "numpy").save(root / "graph")
    for form in ("work", "config", "tokenizer", "settings"):
        shutil.copytree(base if form == "config" else root / "graph", root / form)
    shutil.copytree(root / "others", root / "tokenizer" / "others")
    write_settings(root / "settings")
    for form in FORMS:
        found = outcome(root / form, form, False)
        (root / f"{form}.json").write_text(json.dumps(found))
        if (root / form / "config.json").is_file():
            zoo.load(root / form, "numpy")  # its graph is kept


def write_tokenizers(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{c}" for c in "abcdefgh")]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.add_special_tokens(words[:5])
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(folder / "words.json"))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:80]
    pairs = Tokenizer(models.BPE({c: i for i, c in enumerate([*letters, "ab"])}, [("a", "b")], unk_token="a"))
    pairs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(r"\s+|\w+", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]  # type: ignore[list-item]
    )
    pairs.save(str(folder / "pairs.json"))
    pieces = Tokenizer(models.Unigram([("<unk>", 0.0), *((c, -float(i)) for i, c in enumerate("abcdef▁"))], 0))
    pieces.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.save(str(folder / "pieces.json"))


def write_settings(folder: Path) -> None:
    texts = {
        "tokenizer_config.json": {
            "do_lower_case": True,
            "model_max_length": 16,
            "pad_token": "[PAD]",
            "padding_side": "right",
        },
        "special_tokens_map.json": {"pad_token": "[PAD]", "unk_token": {"content": "[UNK]", "lstrip": False}},
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None},
        "1_Pooling/config.json": {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True},
    }
    for name, value in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))


def write_h5(path: Path, arrays: dict[str, Any]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for number, (name, array) in enumerate(arrays.items()):
            options: dict[str, Any] = {"fletcher32": True} if number % 2 else {"compression": "gzip", "shuffle": True}
            file.create_dataset(name, data=array, chunks=True, **options)
        file.attrs["names"] = list(arrays)


def write_others(root: Path, arrays: dict[str, Any]) -> None:
    import numpy as np
    import test_format_llama2c
    import test_format_onnx
    import test_format_tfjs

    tensors = [test_format_onnx.tensor(n, a, "float32", i % 2 == 0) for i, (n, a) in enumerate(arrays.items())]
    test_format_onnx.save(root / "onnx" / "model.onnx", tensors)
    data = b"".join(array.tobytes() for array in arrays.values())
    weights = [test_format_tfjs.entry(name, array) for name, array in arrays.items()]
    scaled = {"dtype": "uint8", "scale": 0.5, "min": -1.0}
    weights.append(test_format_tfjs.entry("scaled", np.zeros((4, 2), np.float32), quantization=scaled))
    shards = {"group1-shard1of2.bin": data[:5000], "group1-shard2of2.bin": data[5000:] + bytes(8)}
    test_format_tfjs.model(root / "tfjs", [{"paths": list(shards), "weights": weights}], shards)
    (root / "llama2c" / "model.bin").write_bytes(test_format_llama2c.model(1, False)[0])


def digest(array: Any) -> str:
    import numpy as np

    given = np.asarray(array)
    return f"{given.dtype}{list(given.shape)}:{hashlib.sha256(np.ascontiguousarray(given).tobytes()).hexdigest()[:16]}"


def status(key: str) -> int:
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))


if __name__ == "__main__":
    main()
