"""What a trainer and a reward server say to each other: pictures and prompt records one way, scores the other.

A request is bytes: MAGIC, the header's length (4 bytes, big-endian), the header (JSON) and the PNG files one after
the other. PNG is lossless and the ensemble's pixels are 8-bit levels (`src.rewards.ensemble.eight_bit`), so that a
served expert sees the very pixels a local one sees. An answer is JSON; float32 scores survive it exactly, NaN is
null. Whatever does not fit, or is larger than `Limits`, is refused before it is decoded: both sides check, neither
trusts the other.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from math import inf, isfinite
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.data.records import PromptDataError, parse_record
from src.rewards.base import RewardError
from src.rewards.local import Answers, ExpertFacts, ExpertScores
from src.values import PromptRecord

MAGIC = b"BICOT1"
CONTENT_TYPE = "application/octet-stream"
SCORE_PATH, HEALTH_PATH = "/score", "/health"
# Of the header, which holds the prompts: far above what thousands of records take.
MAX_HEADER = 2**24
MAX_NUMBER = 2**40


class WireError(ValueError):
    """A message is no message of this protocol, or too large; says what is wrong with it."""


class TooLarge(WireError):
    """A request is larger than the server's limits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes in one request: images, pixels of all of them together and of one, bytes.

    Decoding takes 12 bytes a pixel asked for, and 7 a pixel of one picture.
    """

    max_images: int = 1024
    max_pixels: int = 2**27
    max_bytes: int = 2**28
    max_picture_pixels: int = 2**22


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """N pictures (N, 3, H, W) float32 in [0, 1] with their N records, for the experts `names` (None: all).

    Without pictures it only asks which experts there are.
    """

    pixels: Tensor
    records: tuple[PromptRecord, ...]
    names: tuple[str, ...] | None


def encode_request(pixels: Tensor, records: Sequence[PromptRecord], names: Sequence[str] | None) -> bytes:
    """A request. pixels (N, 3, H, W) in [0, 1] at 8-bit levels; raises WireError where they are not finite."""
    if not pixels.isfinite().all():
        raise WireError("pixels are not finite")
    levels = (pixels * 255.0).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    files = [_png(image) for image in levels]
    unique: list[PromptRecord] = []
    places = []
    for record in records:
        # The rollouts of a prompt share its record.
        if not unique or record is not unique[-1]:
            unique.append(record)
        places.append(len(unique) - 1)
    header = {
        "names": None if names is None else list(names),
        "records": [record_json(record) for record in unique],
        "record_of": places,
        "bytes": [len(file) for file in files],
        "size": list(pixels.shape[2:]),
    }
    text = json.dumps(header, allow_nan=False).encode()
    return b"".join((MAGIC, len(text).to_bytes(4, "big"), text, *files))


def decode_request(body: bytes, limits: Limits, served: Collection[str] | None = None) -> ScoreRequest:
    """The request that `encode_request` made of it.

    served: the experts there are, where names are to be checked. Raises WireError for bytes that are none, TooLarge
    for a request beyond the limits. What is cheap is checked first: no picture is decoded and no tensor made before
    the header, the records and the size in every picture's own header are known to be right.
    """
    if len(body) > limits.max_bytes:
        raise TooLarge(f"{len(body)} bytes; this server takes max_bytes={limits.max_bytes}")
    header, rest = _header(body)
    names = _names(header["names"], served)
    counts, places, (height, width) = _shape(header, limits)
    if sum(counts) != len(rest):
        raise WireError(f"{len(rest)} bytes of pictures, the header says {sum(counts)}")
    records = _records(header["records"])
    if any(not 0 <= place < len(records) for place in places):
        raise WireError(f"header: record_of names a record that is not there ({len(records)} are)")
    ends = list(accumulate(counts))
    files = [rest[end - count : end] for end, count in zip(ends, counts, strict=True)]
    for number, file in enumerate(files):
        with _opened(file, number, (width, height)):
            pass
    pixels = torch.zeros(len(counts), 3, height, width)
    for number, file in enumerate(files):
        pixels[number].copy_(_levels(file, number, (width, height)))
    return ScoreRequest(pixels.div_(255.0), tuple(records[place] for place in places), names)


def _names(names: Any, served: Collection[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not _list_of(names, str):
        raise WireError("header: names is no list of strings")
    if not names:
        raise WireError("header: names is empty; null asks for all experts")
    unknown = [name for name in names if served is not None and name not in served]
    if unknown:
        raise WireError(f"no expert {unknown[0][:100]!r} here")
    return tuple(names)


def _shape(header: Mapping[str, Any], limits: Limits) -> tuple[list[int], list[int], list[int]]:
    """Byte counts, places of records and (height, width) as the header declares them, all within the limits."""
    counts, places, size = header["bytes"], header["record_of"], header["size"]
    if not (_list_of(counts, int) and _list_of(places, int) and _list_of(size, int) and len(size) == 2):
        raise WireError("header: bytes, record_of and size are lists of numbers, size of two")
    if len(counts) != len(places):
        raise WireError(f"header: {len(counts)} pictures but {len(places)} records")
    height, width = size
    if min(size) < 1 or any(count < 1 for count in counts):
        raise WireError("header: sizes and byte counts are at least 1")
    # Beyond any file; what is computed with such numbers may be too long to be put into a message.
    if max(*size, *counts) > MAX_NUMBER:
        raise TooLarge(f"header: a size or byte count above {MAX_NUMBER}")
    if len(counts) > limits.max_images:
        raise TooLarge(f"{len(counts)} pictures; this server takes max_images={limits.max_images}")
    if height * width > limits.max_picture_pixels:
        raise TooLarge(
            f"pictures of {width} x {height}; this server takes max_picture_pixels={limits.max_picture_pixels}"
        )
    # Without any pictures, too: a tensor of this shape is made.
    if max(1, len(counts)) * height * width > limits.max_pixels:
        raise TooLarge(
            f"{len(counts)} pictures of {width} x {height}; this server takes max_pixels={limits.max_pixels} in all"
        )
    return counts, places, size


def encode_answer(
    facts: Mapping[str, ExpertFacts], settings: Mapping[str, Any], answers: Answers, images: int
) -> dict[str, Any]:
    """The experts there are (facts, and the settings they were made with) and what they say, as JSON-like data."""
    return {
        "images": images,
        "experts": {
            name: {
                # JSON has no infinity: null is no bound.
                "score_range": [bound if isfinite(bound) else None for bound in fact.score_range],
                "higher_is_better": fact.higher_is_better,
                "settings": settings.get(name),
            }
            for name, fact in facts.items()
        },
        "answers": {name: _answer_json(answer) for name, answer in answers.items()},
    }


def decode_facts(data: Any) -> tuple[dict[str, ExpertFacts], dict[str, Any]]:
    """Facts and settings by expert out of a decoded answer; raises WireError for something else."""
    facts, settings = {}, {}
    for name, entry in _object(data, "experts").items():
        bounds, direction = _part(entry, "score_range"), _part(entry, "higher_is_better")
        if not (isinstance(bounds, list) and len(bounds) == 2 and isinstance(direction, bool)):
            raise WireError(f"answer: no facts of expert {name!r}")
        low, high = (_number(bound, bound_without) for bound, bound_without in zip(bounds, (-inf, inf), strict=True))
        facts[name] = ExpertFacts((low, high), direction)
        settings[name] = entry.get("settings")
    return facts, settings


def decode_answers(data: Any, names: Sequence[str], images: int) -> dict[str, ExpertScores | RewardError]:
    """What each of `names` says of `images` pictures; raises WireError for anything else."""
    if _part(data, "images") != images:
        raise WireError(f"answer: it is about {data['images']!r} pictures, asked were {images}")
    answers = _object(data, "answers")
    return {name: _decoded_answer(name, _part(answers, name), images) for name in names}


def record_json(record: PromptRecord) -> dict[str, Any]:
    """A record in the format of prompt files, which `parse_record` reads."""
    data: dict[str, Any] = {"prompt": record.prompt, "task_type": record.task_type}
    data |= {"nouns": list(record.nouns), "attr_nouns": list(record.attribute_nouns)}
    if record.spatial is not None:
        relation = record.spatial
        data["spatial_info"] = {"obj1": relation.first, "obj2": relation.second, "locality": relation.locality}
    data["numeracy_info"] = [{"obj_name": count.name, "num": count.number} for count in record.counts]
    return {**data, "scene": dict(record.scene)}


def _png(levels: np.ndarray[Any, Any]) -> bytes:
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(levels)).save(file, format="PNG", compress_level=1)
    return file.getvalue()


@contextmanager
def _opened(content: memoryview, number: int, size: tuple[int, int]) -> Iterator[Image.Image]:
    """An RGB PNG file of `size` (width, height) of which the header is read, and no pixel.

    Raises WireError for anything else, and for what goes wrong inside the ``with`` block.
    """
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            if image.size != size or image.mode != "RGB":
                raise WireError(f"picture {number}: {image.mode} of {image.size}, the header says RGB of {size}")
            yield image
    except WireError:
        raise
    except Exception as error:  # whatever a decoder makes of bytes from outside
        raise WireError(f"picture {number}: no PNG file ({type(error).__name__}: {error})") from error


def _levels(content: memoryview, number: int, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 of an RGB PNG file of `size` (width, height)."""
    with _opened(content, number, size) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _header(body: bytes) -> tuple[dict[str, Any], memoryview]:
    start = len(MAGIC) + 4
    if body[: len(MAGIC)] != MAGIC or len(body) < start:
        raise WireError("no request of this protocol; trainer and server must be of the same version")
    length = int.from_bytes(body[len(MAGIC) : start], "big")
    if length > MAX_HEADER:
        raise TooLarge(f"a header of {length} bytes; at most {MAX_HEADER} are taken")
    text, rest = body[start : start + length], memoryview(body)[start + length :]
    header = _json(text, "header")
    keys = {"names", "records", "record_of", "bytes", "size"}
    if not isinstance(header, dict) or set(header) != keys:
        raise WireError(f"header: expected an object with {', '.join(sorted(keys))}")
    return header, rest


def _records(data: Any) -> list[PromptRecord]:
    if not isinstance(data, list):
        raise WireError("header: records is no list")
    try:
        return [parse_record(item, f"record {number}") for number, item in enumerate(data)]
    except PromptDataError as error:
        raise WireError(str(error)) from error


def _answer_json(answer: ExpertScores | RewardError) -> dict[str, Any]:
    if isinstance(answer, RewardError):
        # An exception's text may hold what JSON in UTF-8 cannot.
        return {"error": answer.problem.encode(errors="replace").decode(), "prompt": answer.prompt}
    return {
        "rows": list(answer.rows),
        "scores": answer.scores.tolist(),
        "details": {
            name: [value if isfinite(value) else None for value in values.tolist()]
            for name, values in answer.details.items()
        },
        "seconds": answer.seconds,
    }


def _decoded_answer(name: str, data: Any, images: int) -> ExpertScores | RewardError:
    if isinstance(data, dict) and "error" in data:
        return RewardError(name, str(data["error"]), None if data.get("prompt") is None else str(data["prompt"]))
    rows, details = _part(data, "rows"), _object(data, "details")
    if not _list_of(rows, int) or rows != sorted(set(rows)) or any(not 0 <= row < images for row in rows):
        raise WireError(f"answer: expert {name!r} speaks of pictures that were not sent")
    return ExpertScores(
        rows,
        _numbers(name, _part(data, "scores"), len(rows)),
        {key: _numbers(name, values, len(rows)) for key, values in details.items()},
        _number(_part(data, "seconds"), 0.0),
    )


def _numbers(name: str, data: Any, count: int) -> Tensor:
    if not isinstance(data, list) or len(data) != count:
        raise WireError(f"answer: expert {name!r} gives something else than {count} numbers")
    return torch.tensor([_number(value, float("nan")) for value in data], dtype=torch.float32)


def _number(value: Any, without: float) -> float:
    """`value` as a float, `without` where it is null."""
    if value is None:
        return without
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(f"answer: {value!r} is no number")
    return float(value)


def read_json(text: bytes) -> Any:
    """JSON as its standard has it: every number is finite. Raises ValueError, RecursionError."""
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    if not isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number


def _json(text: bytes, what: str) -> Any:
    try:
        return read_json(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what}: not JSON ({error})") from error


def _part(data: Any, key: str) -> Any:
    if not isinstance(data, dict) or key not in data:
        raise WireError(f"answer: {key!r} is missing")
    return data[key]


def _object(data: Any, key: str) -> dict[str, Any]:
    part = _part(data, key)
    if not isinstance(part, dict):
        raise WireError(f"answer: {key!r} is no object")
    return part


def _list_of(value: Any, kind: type) -> bool:
    """Whether it is a list of `kind`; true and false are no numbers."""
    return isinstance(value, list) and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
