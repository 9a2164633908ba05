"""The wire: lossless for what belongs on it, and a clear refusal for everything else."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from dataclasses import fields, replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from src.data.records import parse_record
from src.rewards import wire
from src.rewards.base import RewardError
from src.rewards.ensemble import eight_bit
from src.rewards.local import ExpertFacts, ExpertScores
from src.rewards.wire import Limits, TooLarge, WireError, decode_request, encode_request
from src.values import ObjectCount, PromptRecord, SpatialRelation
from tests.rewards.toy import about, flat_images

INF, NAN = float("inf"), float("nan")
# Words as prompt files may hold them: no control characters.
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12).filter(str.strip)
SCENES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.builds(
    PromptRecord,
    prompt=TEXT,
    task_type=TEXT,
    nouns=st.lists(TEXT, max_size=3).map(tuple),
    attribute_nouns=st.lists(TEXT, max_size=3).map(tuple),
    spatial=st.none() | st.builds(SpatialRelation, TEXT, TEXT, TEXT),
    counts=st.lists(st.builds(ObjectCount, TEXT, st.integers(1, 9)), max_size=3).map(tuple),
    scene=st.dictionaries(TEXT, SCENES, max_size=3),
)


@given(record=RECORDS)
def test_records_come_back_as_they_were(record: PromptRecord) -> None:
    assert parse_record(json.loads(json.dumps(wire.record_json(record))), "here") == record


def test_every_field_of_a_record_travels() -> None:
    """A new field has to be taken along: its expert would see nothing of it on the other side."""
    full = PromptRecord(
        "p", "t", ("n",), ("a",), SpatialRelation("x", "y", "left of"), (ObjectCount("c", 2),), {"k": 1}
    )
    empty = PromptRecord("p")  # its place in a file is not compared, and means nothing elsewhere
    compared = [field.name for field in fields(PromptRecord) if field.compare]
    assert {name for name in compared if getattr(full, name) == getattr(empty, name)} == {"prompt"}
    assert decode_request(encode_request(flat_images((0, 0, 0)), [full], None), Limits()).records == (full,)


@given(seed=st.integers(0, 99), images=st.integers(0, 4), height=st.integers(1, 9), width=st.integers(1, 9))
def test_pictures_come_back_to_the_last_bit(seed: int, images: int, height: int, width: int) -> None:
    pixels = eight_bit(torch.rand(images, 3, height, width, generator=torch.Generator().manual_seed(seed)))
    shared = about("red")
    records = [shared, shared, about("green"), about("red")][:images]
    got = decode_request(encode_request(pixels, records, ["a", "b"]), Limits())
    assert torch.equal(got.pixels, pixels)
    assert got.records == tuple(records)
    assert got.names == ("a", "b")


def test_a_prompts_record_travels_once() -> None:
    shared = about("red")
    pixels = torch.zeros(50, 3, 1, 1)
    together = encode_request(pixels, [shared] * 50, None)
    assert len(together) < len(encode_request(pixels, [replace(shared) for _ in range(50)], None)) - 40 * 80


def test_pixels_that_are_no_number_are_not_sent() -> None:
    with pytest.raises(WireError, match="not finite"):
        encode_request(torch.full((1, 3, 1, 1), NAN), [about("red")], None)


def request_of(
    *, header: dict[str, Any] | None = None, files: bytes | None = None, pixels: Tensor | None = None
) -> bytes:
    """A request of two red 2 x 2 pictures with parts of its header, or its files, replaced."""
    body = encode_request(flat_images((1, 0, 0), (1, 0, 0)) if pixels is None else pixels, [about("red")] * 2, None)
    start = len(wire.MAGIC) + 4
    length = int.from_bytes(body[start - 4 : start], "big")
    text = json.dumps({**json.loads(body[start : start + length]), **(header or {})}).encode()
    return wire.MAGIC + len(text).to_bytes(4, "big") + text + (body[start + length :] if files is None else files)


def png(size: tuple[int, int] = (2, 2), mode: str = "RGB") -> bytes:
    file = BytesIO()
    Image.new(mode, size).save(file, format="PNG")
    return file.getvalue()


def of_format(name: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (2, 2)).save(file, format=name)
    return file.getvalue()


def two(file: bytes) -> dict[str, Any]:
    return {"header": {"bytes": [len(file)] * 2}, "files": file * 2}


def bomb(width: int, height: int) -> bytes:
    """A small file whose header promises a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"header": {"extra": 1}}, "expected an object with"),
        ({"header": {"names": "shapes"}}, "names is no list"),
        ({"header": {"names": [1]}}, "names is no list"),
        ({"header": {"names": []}}, "names is empty; null asks for all"),
        ({"header": {"records": [{"prompt": "a", "scene": {"x": NAN}}]}}, "not JSON .*NaN is not a finite number"),
        ({"header": {"records": [{"prompt": "a", "scene": {"x": -INF}}]}}, "not JSON .*-Infinity is not a finite"),
        ({"header": {"size": [NAN, 2]}}, "not JSON .*NaN is not a finite number"),
        ({"header": {"record_of": [0]}}, "2 pictures but 1 records"),
        ({"header": {"record_of": [0, 1]}}, "record_of names a record that is not there"),
        ({"header": {"record_of": [0, -1]}}, "record_of names a record that is not there"),
        ({"header": {"record_of": [0, True]}}, "lists of numbers"),
        ({"header": {"size": [2]}}, "lists of numbers"),
        ({"header": {"size": [2, 0]}}, "at least 1"),
        ({"header": {"bytes": [0, 0]}}, "at least 1"),
        ({"header": {"bytes": [-1, 5]}}, "at least 1"),
        ({"header": {"bytes": [1, 1]}}, "bytes of pictures, the header says 2"),
        ({"header": {"records": {}}}, "records is no list"),
        ({"header": {"records": [{"prompt": ""}]}}, "record 0: field 'prompt'"),
        ({"header": {"records": [{"prompt": "a", "colour": 1}]}}, "record 0: unknown field 'colour'"),
        (two(png((3, 2))), r"picture 0: RGB of \(3, 2\), the header says RGB of \(2, 2\)"),
        (two(png(mode="L")), "picture 0: L of"),
        (two(png(mode="RGBA")), "picture 0: RGBA of"),
        (two(of_format("JPEG")), "picture 0: no PNG file"),
        (two(of_format("GIF")), "picture 0: no PNG file"),
        (two(png()[:-28]), "picture 0: no PNG file"),
        (two(bomb(2**15, 2**15)), "picture 0: (no PNG file|RGB of)"),
    ],
)
def test_what_is_no_request_is_refused(parts: dict[str, Any], problem: str) -> None:
    with pytest.raises(WireError, match=problem):
        decode_request(request_of(**parts), Limits())


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (Limits(max_images=1), "2 pictures; this server takes max_images=1"),
        (Limits(max_pixels=7), "2 pictures of 2 x 2; this server takes max_pixels=7 in all"),
        (Limits(max_picture_pixels=3), "pictures of 2 x 2; this server takes max_picture_pixels=3"),
        (Limits(max_bytes=100), "bytes; this server takes max_bytes=100"),
    ],
)
def test_limits(limits: Limits, problem: str) -> None:
    with pytest.raises(TooLarge, match=problem):
        decode_request(request_of(), limits)
    decode_request(request_of(), Limits(max_images=2, max_pixels=8))


@pytest.mark.parametrize("size", [[1, 2**31], [10**200, 1], [2**14, 2**14], [10**4200, 10**4200]])
@pytest.mark.parametrize("pictures", [0, 1])
def test_no_tensor_is_made_beyond_the_limits(size: list[int], pictures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without pictures has a size, too; the numbers may be too long for a message, or for torch."""

    def made(*_: Any, **__: Any) -> None:
        raise AssertionError("made")

    monkeypatch.setattr(wire.torch, "zeros", made)
    header = {"names": None, "records": [{"prompt": "x"}], "record_of": [0] * pictures, "bytes": [1] * pictures}
    text = json.dumps(header | {"size": size}).encode()
    with pytest.raises(TooLarge, match=r"max_pixels|max_picture_pixels|size or byte count"):
        decode_request(wire.MAGIC + len(text).to_bytes(4, "big") + text + b"x" * pictures, Limits())


def test_a_number_too_large_for_a_float_is_refused() -> None:
    records = b'[{"prompt": "x", "scene": {"y": 1e999}}]'
    text = b'{"names": null, "records": ' + records + b', "record_of": [], "bytes": [], "size": [2, 2]}'
    with pytest.raises(WireError, match=r"not JSON .*1e999 is not a finite number"):
        decode_request(wire.MAGIC + len(text).to_bytes(4, "big") + text, Limits())


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"header": {"names": ["b"]}}, "no expert 'b' here"),
        ({"header": {"records": [{"prompt": ""}]}}, "record 0: field 'prompt'"),
        ({"header": {"bytes": [len(png()), len(png((3, 2)))]}, "files": png() + png((3, 2))}, "picture 1: RGB of"),
        ({"header": {"bytes": [len(png()), 5]}, "files": png() + b"hello"}, "picture 1: no PNG file"),
    ],
)
def test_what_is_cheap_is_checked_before_a_picture_is_decoded(
    parts: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: Any, **__: Any) -> None:
        raise AssertionError("made")

    monkeypatch.setattr(wire.torch, "zeros", made)
    monkeypatch.setattr(wire.np, "array", made)
    with pytest.raises(WireError, match=problem):
        decode_request(request_of(**parts), Limits(), ("a",))


def test_memory_is_that_of_the_pixels_asked_for() -> None:
    """12 bytes a pixel and one picture's own, in a process that does nothing else."""
    size, pictures = 1024, 24
    asked = pictures * size**2
    script = f"""
import resource, sys
from tests.rewards.test_wire import png, request_of
from src.rewards import wire
file = png(({size}, {size}))
header = {{"bytes": [len(file)] * {pictures}, "record_of": [0] * {pictures}, "size": [{size}, {size}]}}
body = request_of(header=header, files=file * {pictures})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
wire.decode_request(body, wire.Limits())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12 * asked + 16 * size**2 + 2**23


def test_byte_counts_too_long_for_a_message_are_refused() -> None:
    header = {"names": None, "records": [{"prompt": "x"}], "record_of": [0, 0], "size": [2, 2]}
    text = json.dumps(header | {"bytes": [9 * 10**4299] * 2}).encode()
    with pytest.raises(TooLarge, match="size or byte count"):
        decode_request(wire.MAGIC + len(text).to_bytes(4, "big") + text, Limits())


def test_no_picture_is_opened_beyond_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(wire.Image, "open", opened)
    file = bomb(2**14, 2**14)
    with pytest.raises(TooLarge, match="max_picture_pixels"):
        decode_request(
            request_of(**two(file) | {"header": {"bytes": [len(file)] * 2, "size": [2**14, 2**14]}}), Limits()
        )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        wire.MAGIC,
        wire.MAGIC + b"\xff\xff\xff\xff{}",
        wire.MAGIC + b"\0\0\0\5{}",
        wire.MAGIC + b"\0\0\0\2[]",
    ],
)
def test_bytes_that_are_no_message_are_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        decode_request(body, Limits())


def test_a_header_nested_too_deep_is_refused() -> None:
    text = b"[" * 200_000
    with pytest.raises(WireError, match="not JSON"):
        decode_request(wire.MAGIC + len(text).to_bytes(4, "big") + text, Limits())


@given(place=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.integers(0, 10**6))
def test_damage_is_refused_or_harmless(place: int, value: int, cut: int) -> None:
    """Whatever bytes come: a WireError or a request of the promised shape, nothing else."""
    whole = request_of(pixels=torch.from_numpy(np.linspace(0, 1, 24, dtype=np.float32)).view(2, 3, 2, 2))
    damaged = bytearray(whole)
    damaged[place % len(whole)] = value
    for body in (bytes(damaged), whole[: cut % len(whole)]):
        try:
            got = decode_request(body, Limits(max_pixels=64))
        except WireError:
            continue
        assert got.pixels.shape[:2] == (len(got.records), 3)
        assert ((got.pixels >= 0) & (got.pixels <= 1)).all()


FACTS = {"a": ExpertFacts((-1.0, 1.0), True), "b": ExpertFacts((-INF, INF), False)}
ANSWERS: dict[str, Any] = {
    "a": ExpertScores([0, 2], torch.tensor([0.1, -0.7]), {"part": torch.tensor([NAN, 0.3])}, 0.25),
    "b": RewardError("b", "no room", "a cat"),
}


def answer(**replaced: Any) -> Any:
    data = json.loads(json.dumps(wire.encode_answer(FACTS, {"a": {"x": 1}}, ANSWERS, 3), allow_nan=False))
    data["answers"]["a"] |= replaced
    return data


def test_answers_come_back_as_they_were() -> None:
    data = answer()
    facts, settings = wire.decode_facts(data)
    assert facts == FACTS
    assert settings == {"a": {"x": 1}, "b": None}
    got = wire.decode_answers(data, ["a", "b"], 3)
    scores, failure = got["a"], got["b"]
    assert isinstance(scores, ExpertScores)
    assert scores.rows == [0, 2]
    assert torch.equal(scores.scores, ANSWERS["a"].scores), "float32 to the last bit"
    assert torch.equal(scores.details["part"].isnan(), torch.tensor([True, False]))
    assert scores.details["part"][1] == torch.tensor(0.3)
    assert scores.seconds == 0.25
    assert isinstance(failure, RewardError)
    assert (failure.expert, failure.problem, failure.prompt) == ("b", "no room", "a cat")


@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_scores_are_exact(value: float) -> None:
    facts, given_ = {"a": ExpertFacts((-INF, INF), True)}, {"a": ExpertScores([0], torch.tensor([value]))}
    got = wire.decode_answers(json.loads(json.dumps(wire.encode_answer(facts, {}, given_, 1))), ["a"], 1)["a"]
    assert isinstance(got, ExpertScores)
    assert torch.equal(got.scores, torch.tensor([value]))


@pytest.mark.parametrize(
    "replaced",
    [
        {"rows": [0, 3]},
        {"rows": [2, 0]},
        {"rows": [0, 0]},
        {"rows": "ab"},
        {"scores": [0.1]},
        {"scores": [0.1, "x"]},
        {"scores": [0.1, True]},
        {"details": {"part": [1]}},
        {"details": 3},
        {"seconds": "x"},
    ],
)
def test_an_answer_that_does_not_fit_is_refused(replaced: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="answer: "):
        wire.decode_answers(answer(**replaced), ["a"], 3)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"experts": []},
        {"experts": {"a": {}}},
        {"experts": {"a": {"score_range": [0], "higher_is_better": True}}},
    ],
)
def test_facts_that_are_none_are_refused(data: Any) -> None:
    with pytest.raises(WireError, match="answer: "):
        wire.decode_facts(data)


def test_an_answer_about_others_is_refused() -> None:
    with pytest.raises(WireError, match="it is about 3 pictures, asked were 4"):
        wire.decode_answers(answer(), ["a"], 4)
    with pytest.raises(WireError, match="'c' is missing"):
        wire.decode_answers(answer(), ["c"], 3)
