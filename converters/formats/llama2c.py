"""The .bin files of llama2.c: a small header, then a Llama's float32 weights in a fixed order.

Version 0 has no magic number: seven int32, of which a negative vocabulary size says that the classifier has weights
of its own; every kind of tensor is stacked over the layers. Version 1 ("ak42") has a header of 256 bytes and another
order. Names are Meta's: "tok_embeddings.weight", "layers.0.attention.wq.weight", "norm.weight", "output.weight",
and llama2.c's "freqs_cos" and "freqs_sin" (version 0). A shared classifier stands as "output.weight", too.
Source: https://github.com/karpathy/llama2.c (export.py: `legacy_export`, `version1_export`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from converters.checkpoint import AGAIN, MappedCheckpoint, TensorInfo, map_file, refuse_impostor, tensor_info
from zoo.errors import FormatError

__all__ = ["SUFFIXES", "Llama2cCheckpoint", "open_file", "recognises"]

SUFFIXES: tuple[str, ...] = ()  # ".bin" says nothing: torch's files have it, too


def recognises(head: bytes) -> bool:
    """Whether a file that begins so has the magic number of llama2.c, or seven integers that make a Llama."""
    return head.startswith(_MAGIC) or (len(head) >= 28 and _header(head[:28]) is not None)


def open_file(path: Path) -> Llama2cCheckpoint:
    """Opens one llama2.c file of version 0 or 1; the header must explain the file's size.

    Bytes after a version 0 model are accepted if they are fewer than its own, for packages that append the
    tokenizer; `metadata["trailing_bytes"]` counts them.

    Raises:
        FormatError: no header of llama2.c, a size that it does not explain, the int8 files of version 2.
        SourceError: the file cannot be read.
    """
    data = map_file(path)
    refuse_impostor(path, bytes(data[:512]))
    version, start = 0, 28
    if data[:4] == _MAGIC:
        version, start = int.from_bytes(data[4:8], "little"), 256
        if version != 1:
            raise FormatError(
                "the file is quantised to int8" if version == 2 else "unknown version of llama2.c's format",
                where=path,
                expected="version 0 or 1, which are float32",
                got=f"version {version}",
                do="export the model again with llama2.c's export.py --version 1",
            )
    raw = bytes(data[8:37] if version else data[:28])
    header = _header(raw[:28]) if len(raw) >= 28 and start <= len(data) else None
    # Version 1 tells of the classifier in a byte of its own.
    if header is None or (version and (raw[28:] not in (b"\0", b"\1") or not header.shared)):
        raise FormatError(
            "the file does not begin with a Llama's sizes",
            where=path,
            expected="dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len as int32",
            got=f"{struct.unpack(f'<{len(raw) // 4}i', raw[: len(raw) // 4 * 4])}",
        )
    shared = raw[28:] == b"\1" if version else header.shared

    shapes = list(header.version1(shared) if version else header.version0())
    position = start + sum(4 * math.prod(shape) * count for _, shape, count in shapes)
    trailing = len(data) - position
    if trailing < 0 or (trailing and (version or trailing >= position)):
        raise FormatError(
            "the file is truncated" if trailing < 0 else "the file has bytes that no tensor claims",
            where=path,
            expected=f"{position} bytes for {header}",
            got=f"{len(data)} bytes",
            do=AGAIN,
        )
    infos: dict[str, TensorInfo] = {}
    starts: dict[str, int] = {}
    for name, shape, count in shapes:
        for layer in range(count):
            info = tensor_info(name.format(layer), list(shape), "float32", path)
            infos[info.name], starts[info.name] = info, start
            start += info.nbytes
    aliases = {}
    if shared:
        aliases["output.weight"] = first = "tok_embeddings.weight"
        infos["output.weight"] = tensor_info("output.weight", list(infos[first].shape), "float32", path)
        starts["output.weight"] = starts[first]
    metadata = asdict(header) | {"version": version, "shared": int(shared)}
    if trailing:
        metadata["trailing_bytes"] = trailing
    return Llama2cCheckpoint(path, infos, data, starts, metadata, aliases)


class Llama2cCheckpoint(MappedCheckpoint):
    """One llama2.c file; `read` returns views.

    `metadata` has the header's dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (positive) and seq_len,
    the format's version, and shared: 1 if the embedding is the classifier, else 0.
    """

    format = "llama2c"


_MAGIC = b"24ka"  # the integer 0x616b3432, "ak42", little-endian

_Shapes = Iterator[tuple[str, tuple[int, ...], int]]  # name with a place for the layer, shape, number of layers


@dataclass(frozen=True, slots=True)
class _Header:
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared: bool

    def version0(self) -> _Shapes:
        yield "tok_embeddings.weight", (self.vocab_size, self.dim), 1
        yield "layers.{}.attention_norm.weight", (self.dim,), self.n_layers
        yield from self.attention()
        yield "layers.{}.ffn_norm.weight", (self.dim,), self.n_layers
        yield from self.feed_forward()
        yield "norm.weight", (self.dim,), 1
        yield "freqs_cos", (self.seq_len, self.dim // self.n_heads // 2), 1
        yield "freqs_sin", (self.seq_len, self.dim // self.n_heads // 2), 1
        if not self.shared:
            yield "output.weight", (self.vocab_size, self.dim), 1

    def version1(self, shared: bool) -> _Shapes:
        yield "layers.{}.attention_norm.weight", (self.dim,), self.n_layers
        yield "layers.{}.ffn_norm.weight", (self.dim,), self.n_layers
        yield "norm.weight", (self.dim,), 1
        yield "tok_embeddings.weight", (self.vocab_size, self.dim), 1
        yield from self.attention()
        yield from self.feed_forward()
        if not shared:
            yield "output.weight", (self.vocab_size, self.dim), 1

    def attention(self) -> _Shapes:
        kv = self.dim // self.n_heads * self.n_kv_heads
        for letter, rows in (("q", self.dim), ("k", kv), ("v", kv), ("o", self.dim)):
            yield f"layers.{{}}.attention.w{letter}.weight", (rows, self.dim), self.n_layers

    def feed_forward(self) -> _Shapes:
        yield "layers.{}.feed_forward.w1.weight", (self.hidden_dim, self.dim), self.n_layers
        yield "layers.{}.feed_forward.w2.weight", (self.dim, self.hidden_dim), self.n_layers
        yield "layers.{}.feed_forward.w3.weight", (self.hidden_dim, self.dim), self.n_layers


def _header(raw: bytes) -> _Header | None:
    """The seven sizes, if a Llama can have them: without a magic number they must be plausible."""
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", raw)
    ranges = ((dim, 1 << 16), (hidden, 1 << 20), (layers, 1 << 10), (heads, 1 << 10), (kv_heads, 1 << 10))
    if not all(0 < size <= most for size, most in (*ranges, (abs(vocab), 1 << 22), (length, 1 << 24))):
        return None
    if dim % heads or heads % kv_heads or dim // heads % 2:
        return None
    return _Header(dim, hidden, layers, heads, kv_heads, abs(vocab), length, vocab > 0)
