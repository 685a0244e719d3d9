"""Flax's msgpack: what Flax wrote is read bit for bit, and written again byte for byte; hostile files are refused.

The three files below were written by flax 0.10.7's `serialization.to_bytes`.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from converters import DTYPES, open_checkpoint
from converters.checkpoint import Checkpoint, MemoryCheckpoint
from converters.formats.msgpack import read as msgpack
from zoo.errors import FormatError, ZooError


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


EVERY_DTYPE = (
    r"c-rmN&rTCj6vy#%Tc{|AKv>|Pg$p$<SU@SYCMXjE28|@f7r=rglA(Z75^!TdA3*F2z(`Rf%0pNjOw_d+!!!5>dS~XglqoT2Tz)?Z"
    r"Idgw==9GJx(5D--=|}18+@7?rkIl?Xxvi@3A`<nlOEFQN;{4=vF6FlQcY=j?D-x}%U-$2rXR2>(cx~ND_q2b@tV&HHN+J@KI;odp"
    r"(9sc$J*2^ZsweJV+@H}CFLj7`O`_XGH;Qf*-7Nk*-F=}l?@!JCv}D4)wm&<WD0PXUOpTZtHMP#vdQ*$Rl)lPm{>zY86H_y3?<mgr"
    r"W6DeKFr-f`8IVC4dOcR|I_q~;)?Qn_Uo6YYTdP*^us()MRkO+m;Wvt&sJr#G{wY78_i(-Hf$CiZe)gLSD<}=7wwT&(ZH~`mXQwg?"
    r"dX(jl+7GIS<wJukQ}d>-`t^-@wmY73ANtd(lF~gnRONS+gC9}W5L&l{*6o$`TmKYNqnSjuXJXp?T@Hr&MNe6S!?(5%r1Ov6bAEF;"
    r"*6r5t?K^k3%6V@#ZeIQBNVoM_1A{}`RoP)vP3%n_yfJ+9T{%x>yL4_|kx*KS{d$sLT3Xr~OXtQPjLzlKxw&Uf*Zr@m@VxS#=y&tH"
    r"Rm@~(bBk`Xo+A6NqpYVFGIP6XL=}EWn+p4^I)ncWJE~J~WX}7|<!_f4j_9MP)@4;#`J(G=aNZxhOU@Ah00000000000000000000"
    r"0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    r"0001h|L?o%T*Q&>#zs_O<<o9)aypkx?8Gc(&XG!`QmNFxscYFiX?5(br8V1a)L$)XU4OHrN=h8NJDe%Uj)${|WA}u!sADI>S)F6|"
    r"hO>IdPKL9XV_ykp#~eEq&Key1YB)Ro((bO=$O#?R?4(hLHCt)YVa;An>ab=r%{r{v%_$w$Y^UWnW3WU8"
)
CHUNKS = (
    r"c-oE7y-LGS6bJD1Ll8meP{Bbl77@oJt+h_Q=MDM>X&U=Q(>62;x<!l7MX0zq_ExIJ$x*k0LSDhqNAMB+r<9};E_%s7%lUEdIp>NS"
    r"{fA1k-hb2ewo|tav!$Djvremeq8q)QaiQz)6Q^O=)jn6^TupE-`8Ws8HCMdd*xl{QQ_bocr&;YIEzOTx#E;=aT*lR?8lf^nz7UBd"
    r"DMeh1Dj5|8VMqxn6VFDKjf#s5kRftUJm+mgB?Fbhi>OSI7vz=3mD=9}Uvgz*F)C*FGPrVWTAAOe=KYs3Cu7WIBQ|50gfN8~VKOPi"
    r"s6=J5$)y1e2@PtWP_a<OM>KKThGls>{&<sSCs=0;i6aRliE#5@ov$xCzd`4+|JbwHZQEA$T-6HxK7JqcEkfVL0BPczSb(xZv>KwE"
    r"5T!zNC`9QH<%MW7L`Ooj6{3O=$ssxxqD+9ss(9slOG>=+{Us${`az(60Ke7^%m"
)
OTHER_VALUES = (
    r"c-re-Qe2W+z`Q7@=(PO<1~6EXm!Fq<U`bwLZtB8{MR^4`m?uwIo|coJSYm8+goT0Ofc?U%<HAgnPTPNgXgKWvp&1q@Wu~8JU|@uB"
    r"@>0_;{<m0|+OROEX`#V!QO3y=nc(JdFfcUOgYZJb#)XN;xq*_5OEU9HERHZTE-X2`u;92LNC?^92K&WDiRDL_5|aQsZ$RM"
)


def every_dtype() -> dict[str, np.ndarray]:
    """What `EVERY_DTYPE` was made from."""
    arrays = {f"params/{name}": np.arange(6).reshape(2, 3).astype(dtype) for name, dtype in DTYPES.items()}
    arrays["batch_stats/0d"] = np.array(2.5, np.float32)
    arrays["batch_stats/empty"] = np.zeros((0, 3), np.float16)
    arrays["batch_stats/axes"] = np.zeros((1,) * 17 + (300,), np.uint8)
    arrays["batch_stats/é/" + "x" * 40] = np.zeros(70000, np.uint8)
    arrays["batch_stats/é/" + "y" * 300] = np.ones(200, np.int64)
    return arrays | {f"m/k{i}/k": np.full(1, i, np.int8) for i in range(17)}


def chunks() -> dict[str, np.ndarray]:
    """What `CHUNKS` was made from, with chunks of 20 bytes."""
    return {
        "a/big": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "a/bf": np.arange(21).astype(ml_dtypes.bfloat16),
        "a/small": np.arange(5, dtype=np.int32),
        "c": np.arange(13, dtype=np.complex128),
    }


def stored(folder: Path, data: bytes) -> Path:
    path = folder / "flax_model.msgpack"
    path.write_bytes(data)
    return path


def written(folder: Path, checkpoint: Checkpoint) -> bytes:
    path = folder / "written.msgpack"
    path.unlink(missing_ok=True)
    msgpack.write(path, checkpoint)
    return path.read_bytes()


def assert_equal(checkpoint: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    assert list(checkpoint.infos) == list(expected)
    for name, value in expected.items():
        array = checkpoint.read(name)
        assert array.dtype == value.dtype and array.shape == value.shape == checkpoint.infos[name].shape, name
        assert array.tobytes() == value.tobytes() and not array.flags.writeable, name


class Pieces(MemoryCheckpoint):
    """Arrays in blocks of a few bytes, which end anywhere."""

    def blocks(self, name, size=8):
        return super().blocks(name, size)


def test_reads_and_writes_what_flax_wrote(tmp_path):
    data = unpacked(EVERY_DTYPE)
    with msgpack.open_file(stored(tmp_path, data)) as checkpoint:
        assert_equal(checkpoint, every_dtype())
        assert not checkpoint.metadata and not checkpoint.aliases
        assert np.shares_memory(checkpoint.read("params/int64"), checkpoint.read("params/int64"))
        assert written(tmp_path, checkpoint) == data
    assert written(tmp_path, Pieces(every_dtype())) == data


def test_chunks(tmp_path, monkeypatch):
    data = unpacked(CHUNKS)
    monkeypatch.setattr(msgpack, "MAX_CHUNK", 20)
    with msgpack.open_file(stored(tmp_path, data)) as checkpoint:
        assert_equal(checkpoint, chunks())
        assert written(tmp_path, checkpoint) == data
    assert written(tmp_path, Pieces(chunks())) == data


def test_what_is_no_array_is_metadata(tmp_path):
    with msgpack.open_file(stored(tmp_path, unpacked(OTHER_VALUES))) as checkpoint:
        ones = np.ones(2, np.float32)
        expected = {"np": np.array(1.5, np.float32), "l/0": ones, "l/1/a": np.ones(1, np.int8), "p": ones[:1]}
        assert_equal(checkpoint, expected)
        assert checkpoint.metadata == {
            "step": 3,
            "lr": 0.5,
            "none": None,
            "name": "x",
            "z": "(1+2j)",
            "big": 1 << 40,
            "neg": -200,
            "e": {},
            "t": True,
            "raw": "<bytes>",
        }


@pytest.mark.parametrize("model", ["bert-mlm", "gpt2", "resnet", "roberta-cls", "t5", "vit"])
def test_fixtures(model, fixtures, tmp_path):
    path = fixtures / model / "flax" / "flax_model.msgpack"
    with msgpack.open_file(path) as checkpoint:
        assert msgpack.recognises(path.read_bytes()[:512])
        assert written(tmp_path, checkpoint) == path.read_bytes()
        for info in checkpoint.infos.values():
            assert info.dtype == "float32" and np.isfinite(checkpoint.read(info.name)).all(), info


def test_fixture_values_are_those_of_the_torch_file(fixtures):
    other = safetensors.numpy.load_file(fixtures / "bert-mlm" / "torch" / "model.safetensors")
    with msgpack.open_file(fixtures / "bert-mlm" / "flax" / "flax_model.msgpack") as checkpoint:
        assert len(checkpoint.infos) > 50
        for name, array in checkpoint.items():
            *start, last = name.split("/")
            last = {"embedding": "weight", "scale": "weight", "kernel": "weight"}.get(last, last)
            expected = other.get(".".join([*start, last]))
            if expected is None:  # the head's bias stands elsewhere
                assert name == "cls/predictions/bias" or "decoder" in name, name
                continue
            array = array.T if name.endswith("/kernel") else array
            np.testing.assert_array_equal(array, expected, err_msg=name)


def test_any_layout_is_written(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    values = {"t": base.T, "s": base[::2, 1::3], "big": base.astype(">f4"), "bf": base.astype(ml_dtypes.bfloat16).T}
    path = stored(tmp_path, written(tmp_path, Pieces(values)))
    with msgpack.open_file(path) as checkpoint:
        for name, value in values.items():
            np.testing.assert_array_equal(checkpoint.read(name), value)


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    size = 1 << 22

    class Made(MemoryCheckpoint):
        def _read(self, info):
            return np.full(info.shape, int(info.name[1:]), np.float32)

    made = Made({f"t{i}": np.broadcast_to(np.float32(0), size // 4) for i in range(8)})
    tracemalloc.start()
    msgpack.write(tmp_path / "a.msgpack", made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size
    with msgpack.open_file(tmp_path / "a.msgpack") as checkpoint:
        assert [int(checkpoint.read(f"t{i}")[-1]) for i in range(8)] == list(range(8))


def test_a_sharded_checkpoint(tmp_path):
    parts = {"flax_model-00001-of-00002.msgpack": {"a/b": np.arange(3)}, "flax_model-00002-of-00002.msgpack": {}}
    parts["flax_model-00002-of-00002.msgpack"] = {"a/c/d": np.ones(2, np.float16), "e": np.zeros(1)}
    for name, arrays in parts.items():
        msgpack.write(tmp_path / name, MemoryCheckpoint(arrays))
    weight_map = {name: shard for shard, arrays in parts.items() for name in arrays}
    index = tmp_path / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map}))
    with open_checkpoint(index) as checkpoint:
        assert_equal(checkpoint, {name: array for arrays in parts.values() for name, array in arrays.items()})


@pytest.mark.parametrize(
    "names", [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b"), ("\ud800",), (f"a/{msgpack.CHUNKED}",)]
)
def test_names_that_cannot_be_written(names, tmp_path):
    with pytest.raises(FormatError, match="name"):
        written(tmp_path, MemoryCheckpoint({name: np.zeros(1) for name in names}))


# --- hostile files ---


def ext(payload: bytes, kind: int = 1) -> bytes:
    return b"\xc9" + struct.pack(">IB", len(payload), kind) + payload


def array(shape: bytes = b"\x91\x02", dtype: bytes = b"\xa4int8", data: bytes = b"\xc4\x02ab") -> bytes:
    return ext(b"\x93" + shape + dtype + data)


def chunked(shape: bytes = b"\x81\xa10\x02", parts: bytes = b"\x81\xa10" + array(), flag: bytes = b"\xc3") -> bytes:
    return b"\x81\xa1a\x83\xb9__msgpack_chunked_array__" + flag + b"\xa5shape" + shape + b"\xa6chunks" + parts


def deep(levels: int) -> bytes:
    return b"\x81\xa1a" * levels + b"\xc0"


GOOD = b"\x81\xa1a" + array()

HOSTILE = {
    "nothing": (b"", "empty"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
    "a web page": (b"<!DOCTYPE html>", "web page"),
    "no map": (array(), "no map"),
    "a bare number": (b"\x07", "no map"),
    "trailing bytes": (GOOD + b"\0", "after its end"),
    "reserved byte": (b"\x81\xa1a\xc1", "not MessagePack"),
    "no value": (b"\x81\xa1a", "truncated"),
    "map of 2**32 - 1": (b"\xdf\xff\xff\xff\xff\xa1a\xc0", "truncated"),
    "list of 2**32 - 1": (b"\x81\xa1a\xdd\xff\xff\xff\xff", "truncated"),
    "text of 2**32 - 1": (b"\x81\xa1a\xdb\xff\xff\xff\xff", "too long"),
    "key of 2**32 - 1": (b"\x81\xdb\xff\xff\xff\xff", "too long"),
    "bytes of 2**32 - 1": (b"\x81\xa1a\xc6\xff\xff\xff\xff", "truncated"),
    "extension of 2**32 - 1": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "truncated"),
    "array data of 2**32 - 1": (
        b"\x82\xa1a" + array(data=b"\xc6\xff\xff\xff\xffab") + b"\xa1b\xc0",
        "longer than the place",
    ),
    "a key twice": (b"\x82\xa1a\xc0\xa1a\xc0", "twice"),
    "an array twice": (b"\x82\xa1a" + array() + b"\xa1a" + array(), "twice"),
    "key of bytes": (b"\x81\xc4\x01a\xc0", "key is not text"),
    "key of a number": (b"\x81\x01\xc0", "key is not text"),
    "key with a slash": (b"\x81\xa3a/b\xc0", "slash"),
    "key that is not UTF-8": (b"\x81\xa2\xc3\x28\xc0", "UTF-8"),
    "text that is not UTF-8": (b"\x81\xa1a\xa1\xff", "UTF-8"),
    "unknown extension": (b"\x81\xa1a" + ext(b"abc", 7), "unknown extension"),
    "timestamp": (b"\x81\xa1a\xd6\xff\0\0\0\0", "unknown extension"),
    "too few bytes": (b"\x81\xa1a" + array(shape=b"\x91\x03"), "do not fit"),
    "too many bytes": (b"\x81\xa1a" + array(shape=b"\x91\x01"), "do not fit"),
    "size of 2**63": (b"\x81\xa1a" + array(shape=b"\x91\xcf" + bytes([128]) + bytes(7)), "list of sizes"),
    "shape that overflows": (b"\x81\xa1a" + array(shape=b"\x93" + (b"\xce" + b"\xff" * 4) * 3), "list of sizes"),
    "negative size": (b"\x81\xa1a" + array(shape=b"\x91\xff"), "list of sizes"),
    "float size": (b"\x81\xa1a" + array(shape=b"\x91\xca\0\0\0\0"), "list of sizes"),
    "sixty-five axes": (b"\x81\xa1a" + array(shape=b"\xdc\0\x41" + b"\x01" * 65), "axes"),
    "axes to 2**16": (b"\x81\xa1a" + array(shape=b"\xdc\xff\xff"), "axes"),
    "objects": (b"\x81\xa1a" + array(dtype=b"\xa6object"), "dtype"),
    "no dtype": (b"\x81\xa1a" + array(dtype=b"\xa0"), "dtype"),
    "dtype of bytes": (b"\x81\xa1a" + array(dtype=b"\xc4\x04int8"), "shape, dtype and bytes"),
    "data as text": (b"\x81\xa1a" + array(data=b"\xa2ab"), "shape, dtype and bytes"),
    "array of two": (b"\x81\xa1a" + ext(b"\x92\x91\x02\xa4int8"), "shape, dtype and bytes"),
    "array with a rest": (b"\x81\xa1a" + array(data=b"\xc4\x02abc"), "after its end"),
    "empty array payload": (b"\x82\xa1a" + ext(b"") + b"\xa1b\xc0", "longer than the place"),
    "complex of one": (b"\x81\xa1a" + ext(b"\x91\xcb" + bytes(8), 2), "two floats"),
    "maps too deep": (deep(100), "deep"),
    "maps a million deep": (deep(1_000_000), "deep"),
    "lists a million deep": (b"\x81\xa1a" + b"\x91" * 1_000_000 + b"\xc0", "deep"),
    "a million values": (b"\x81\xa1a\xdd" + struct.pack(">I", 1_000_000) + b"\xc0" * 1_000_000, "too many names"),
    "long keys": (
        b"\xdf\0\0\x80\0" + b"".join(b"\xda\x04\0" + b"%01024d" % i + b"\xc0" for i in range(1 << 15)),
        "keys and texts are too long",
    ),
    "one long key before many": (
        b"\x81\xda\x10\0" + b"k" * 4096 + b"\xdd\0\0\x80\0" + b"\xc0" * (1 << 15),
        "names are too long",
    ),
    "chunks: one missing": (chunked(shape=b"\x81\xa10\x05"), "in chunks"),
    "chunks: none": (chunked(parts=b"\x80"), "in chunks"),
    "chunks: no map": (chunked(parts=array()), "in chunks"),
    "chunks: numbers": (chunked(parts=b"\x81\xa10\x05"), "in chunks"),
    "chunks: misnumbered": (chunked(parts=b"\x81\xa11" + array()), "in chunks"),
    "chunks: two dtypes": (chunked(parts=b"\x82\xa10" + array() + b"\xa11" + array(dtype=b"\xa5uint8")), "in chunks"),
    "chunks: shape of text": (chunked(shape=b"\x81\xa10\xa12"), "in chunks"),
    "chunks: huge shape": (chunked(shape=b"\x81\xa10\xcf\x7f" + b"\xff" * 7), "list of sizes"),
    "chunks: false": (chunked(flag=b"\xc2"), "in chunks"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case, tmp_path):
    data, words = HOSTILE[case]
    path = stored(tmp_path, data)
    tracemalloc.start()
    with pytest.raises(FormatError, match=words) as caught:
        msgpack.open_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 64 << 20


def test_errors_name_the_tensor(tmp_path):
    path = stored(tmp_path, b"\x81\xa1a\x81\xa1b" + array(shape=b"\x91\x03"))
    with pytest.raises(FormatError, match="'a/b'"):
        msgpack.open_file(path)


def test_truncation_and_damage(tmp_path):
    assert msgpack.open_file(stored(tmp_path, GOOD)).read("a").tolist() == [97, 98]
    whole = unpacked(CHUNKS)
    for size in range(len(whole)):
        with pytest.raises(FormatError):
            msgpack.open_file(stored(tmp_path, whole[:size]))
    random_, refused = random.Random(0), 0
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(random_.choice([1, 1, 2, 8])):
            data[random_.randrange(len(data))] = random_.randrange(256)
        try:
            with msgpack.open_file(stored(tmp_path, bytes(data))) as checkpoint:
                assert sum(array.nbytes for _, array in checkpoint.items()) <= len(data)
        except ZooError:
            refused += 1
    assert refused >= 650


def test_recognises_only_maps_of_names():
    assert msgpack.recognises(GOOD) and msgpack.recognises(unpacked(CHUNKS)[:512])
    assert msgpack.recognises(b"\xde\0\x10\xa1a") and msgpack.recognises(b"\x81\xd9\x21" + b"a" * 33)
    for head in (
        b"",
        b"\x81",
        b"PK\x03\x04",
        b"\x80\x02}q",
        b"\x89HDF\r\n\x1a\n",
        b"GGUF",
        b"\x81\xa1\x00",
        b"\x93\xa1a",
    ):
        assert not msgpack.recognises(head), head
