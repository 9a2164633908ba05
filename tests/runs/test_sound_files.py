"""Files with a checksum: whole or not there, whatever cuts the writing short; any damage is seen."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.runs import sound_files
from src.runs.sound_files import (
    CannotSave,
    DamagedFile,
    checksum_path,
    damage,
    digests,
    partial_path,
    require_sound,
    write_whole,
)


def put(path: Path, content: bytes, keep_as: Path | None = None) -> None:
    write_whole(path, lambda file: file.write(content), keep_as)


def test_the_checksum_is_sha256sums_own(tmp_path: Path) -> None:
    put(tmp_path / "deep" / "file.ckpt", b"first")
    put(tmp_path / "deep" / "file.ckpt", b"second", keep_as=tmp_path / "deep" / "before.ckpt")
    assert (tmp_path / "deep" / "file.ckpt").read_bytes() == b"second"
    assert (tmp_path / "deep" / "before.ckpt").read_bytes() == b"first"
    command = ["sha256sum", "--strict", "-c", "file.ckpt.sha256", "before.ckpt.sha256"]
    done = subprocess.run(command, cwd=tmp_path / "deep", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "file.ckpt: OK\nbefore.ckpt: OK\n")
    assert digests(tmp_path / "deep" / "file.ckpt") == [hashlib.sha256(b"second").hexdigest()]


@given(st.binary(min_size=1, max_size=64), st.data())
def test_any_flipped_bit_and_any_cut_is_seen(content: bytes, data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        put(path, content)
        assert damage(path) is None
        place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        for bad in (bytes(flipped), content[:place], content + b"\0"):
            path.write_bytes(bad)
            with pytest.raises(DamagedFile, match=f"{path}: damaged: its {len(bad)} bytes"):
                require_sound(path)


def test_a_file_without_a_checksum_is_nothing_to_complain_of_an_unreadable_checksum_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    assert damage(path) is None
    checksum_path(path).write_bytes(b"\xff\xfe")
    assert "file.sha256 is unreadable" in str(damage(path))


class Cut(BaseException):
    """The process ends here."""


# What of `write_whole` reaches the disk.
REACHING_THE_DISK = ((os, "fsync"), (os, "link"), (Path, "replace"), (Path, "open"), (Path, "unlink"))


def write_cut(path: Path, before: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Write `path` once more, as if killed before the call number `at`; whether it came to its end."""
    calls = 0

    def counted(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                raise Cut
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in REACHING_THE_DISK:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            put(path, b"three", keep_as=before)
        except Cut:
            return False
        return True


def test_cut_anywhere_a_sound_file_stands_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut before its first call, its second, ... until it comes to its end; what is left is the old or the new."""
    whole, at = False, 0
    while not whole:
        folder = tmp_path / str(at)
        path, before = folder / "file", folder / "before"
        put(path, b"one")
        put(path, b"two", keep_as=before)
        whole = write_cut(path, before, at, monkeypatch)
        assert path.read_bytes() in ((b"three",) if whole else (b"two", b"three")), at
        assert before.read_bytes() in ((b"two",) if whole else (b"one", b"two")), at
        assert damage(path) is None, at
        assert damage(before) is None, at
        put(path, b"four", keep_as=before)
        assert (path.read_bytes(), damage(path), damage(before)) == (b"four", None, None), at
        at += 1
    assert at > len(REACHING_THE_DISK), "each of them was cut"


def test_without_hard_links_the_old_file_is_kept_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(sound_files.os, "link", refuse)
    put(tmp_path / "file", b"one")
    put(tmp_path / "file", b"two", keep_as=tmp_path / "before")
    assert [(tmp_path / name).read_bytes() for name in ("file", "before")] == [b"two", b"one"]
    assert damage(tmp_path / "before") is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_names_file_and_reason_and_touches_nothing(tmp_path: Path) -> None:
    """The kernel's own ENOSPC: /dev/full stands where the new content would be written."""
    path = tmp_path / "file"
    put(path, b"old")
    partial_path(path).symlink_to("/dev/full")
    with pytest.raises(CannotSave, match=f"{path}: cannot be written .No space left on device."):
        put(path, b"new")
    assert path.read_bytes() == b"old"
    assert damage(path) is None
    assert not partial_path(path).is_symlink(), "what was half written is taken away"
