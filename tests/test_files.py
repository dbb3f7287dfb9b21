from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from robustml.errors import RunError
from robustml.files import write_atomic


def test_writes_text_as_utf8_and_bytes_as_they_are(tmp_path: Path) -> None:
    write_atomic(tmp_path / "text", "größe\r\n")
    write_atomic(str(tmp_path / "bytes"), b"\x00\xff")
    assert (tmp_path / "text").read_bytes() == "größe\r\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"


def test_replaces_a_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_atomic(path, "first, and longer")
    write_atomic(path, "second")
    assert path.read_text() == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_makes_missing_folders(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "file", "x")
    assert (tmp_path / "a" / "b" / "file").read_text() == "x"


def test_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("x")
    write_atomic(tmp_path / "ours", "x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "ours")]
    assert modes[0] == modes[1]


def test_keeps_a_link_and_writes_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_half_a_surrogate_pair_does_not_cost_the_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", "a\ud800b")
    assert (tmp_path / "file").read_text() == "a\\ud800b"


@pytest.mark.skipif(not Path(os.devnull).is_char_device(), reason="the system has no null device to write to")
def test_a_device_is_written_to_and_not_replaced() -> None:
    write_atomic(os.devnull, "gone")
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize("name", ["folder", "file/below", "n" * 300, "nul\0byte"])
def test_what_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(RunError, match="cannot write") as caught:
        write_atomic(tmp_path / name, "x")
    assert "\n" not in str(caught.value)
    assert name.replace("\0", "\\x00") in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_full_disk_is_one_line() -> None:
    with pytest.raises(RunError, match="'/dev/full': No space left on device"):
        write_atomic("/dev/full", "x")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"):
        write_atomic(tmp_path / "file", "x")
