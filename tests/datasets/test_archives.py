"""Image stores: every kind gives the same bytes, also to threads and forks, and damage is noticed."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pcmoe_det.datasets import archives
from pcmoe_det.datasets.archives import find_image_store, open_image_store, shared_image_store
from pcmoe_det.errors import DataError
from tests.datasets.shift_files import encode_jpeg, write_images

IMAGES = {f"video{code % 3}/{code:08d}_img_front.jpg": encode_jpeg(code) for code in range(12)}
KINDS = ["img.zip", "img.tar", "img", "img_decompressed.zip", "img_decompressed.tar"]


class _FakeGroup(dict[str, Any]):
    """The part of h5py's groups that stores use: nested names, and ``dataset[()]``."""

    def __contains__(self, name: object) -> bool:
        group, _, rest = str(name).partition("/")
        return dict.__contains__(self, group) and (not rest or rest in self[group])

    def __getitem__(self, name: str) -> Any:
        group, _, rest = name.partition("/")
        return dict.__getitem__(self, group)[rest] if rest else dict.__getitem__(self, group)


class _FakeDataset:
    def __init__(self, value: Any) -> None:
        self._value = value

    def __getitem__(self, index: tuple[()]) -> Any:
        return self._value


class _FakeFile(_FakeGroup):
    opened: list[int] = []  # noqa: RUF012

    def __init__(self, path: Path, mode: str) -> None:
        assert mode == "r"
        if not path.read_bytes().startswith(b"\x89HDF"):
            raise OSError("no signature")
        self.opened.append(os.getpid())
        super().__init__()
        for member, data in IMAGES.items():
            video, name = member.split("/")
            array = np.frombuffer(data, np.uint8)
            if video == "video2":  # variable-length arrays, as one common writer stores them
                holder = np.empty(1, dtype=object)
                holder[0] = array
                array = holder
            self.setdefault(video, _FakeGroup())[name] = _FakeDataset(array)

    def close(self) -> None:
        self.clear()


@pytest.fixture
def fake_h5py(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    module = ModuleType("h5py")
    module.File = _FakeFile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "h5py", module)
    monkeypatch.setattr(_FakeFile, "opened", [])
    return _FakeFile.opened


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path / kind, IMAGES)
    assert find_image_store(tmp_path) == tmp_path / kind
    store = open_image_store(tmp_path / kind)
    assert sorted(store.members()) == sorted(IMAGES)
    assert {member: store.read(member) for member in IMAGES} == IMAGES
    assert all(member in store for member in IMAGES)
    assert "video0/none.jpg" not in store
    assert store.missing([*IMAGES, "video0/none.jpg", "other/x.jpg"]) == ["video0/none.jpg", "other/x.jpg"]
    assert store.read_size("video0/00000000_img_front.jpg") == (64, 40)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read("video1/00000001_img_front.jpg") == IMAGES["video1/00000001_img_front.jpg"]
    store.close()


def test_images_beside_the_label_file(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    (tmp_path / "det_2d.json").touch()
    assert find_image_store(tmp_path) == tmp_path
    store = open_image_store(tmp_path)
    assert store.read("video0/00000000_img_front.jpg") == IMAGES["video0/00000000_img_front.jpg"]
    assert sorted(store.members()) == sorted(IMAGES)


def test_decompressed_images_win_over_a_tar_of_videos(tmp_path: Path) -> None:
    write_images(tmp_path / "img.tar", {"video0.mp4": b"film"})
    store = open_image_store(find_image_store(tmp_path))
    with pytest.raises(DataError, match=r"'video0\.mp4'.*must be decompressed"):
        store.read("video0/00000000_img_front.jpg")
    write_images(tmp_path / "img_decompressed.tar", IMAGES)
    assert find_image_store(tmp_path).name == "img_decompressed.tar"


def test_no_images_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "det_2d.json").touch()
    with pytest.raises(DataError, match=r"img\.zip.*found det_2d\.json"):
        find_image_store(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        find_image_store(tmp_path / "none")
    with pytest.raises(DataError, match="no such image archive"):
        open_image_store(tmp_path / "img.zip")
    (tmp_path / "img.rar").touch()
    with pytest.raises(DataError, match=r"img\.rar.*known are.*\.zip, \.tar"):
        open_image_store(tmp_path / "img.rar")


@pytest.mark.parametrize("kind", ["img.zip", "img.tar", "img"])
def test_a_missing_member_names_archive_and_member(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path / kind, IMAGES)
    with pytest.raises(DataError) as caught:
        open_image_store(tmp_path / kind).read("video9/x.jpg")
    for word in (str(tmp_path / kind), "'video9/x.jpg'", "'video0/00000000_img_front.jpg'"):
        assert word in str(caught.value)


def test_deflated_members_and_a_prefixed_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("./a/", b"")
        archive.writestr("./a/text.jpg", b"abc" * 1000)
    (tmp_path / "img.zip").write_bytes(b"self-extractor" + (tmp_path / "packed.zip").read_bytes())
    store = open_image_store(tmp_path / "img.zip")
    assert list(store.members()) == ["a/text.jpg"]
    assert store.read("a/text.jpg") == b"abc" * 1000


def test_a_zip_of_another_method_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "img.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a/x.jpg", b"abc" * 1000)
    with pytest.raises(DataError, match=r"a/x\.jpg.*method 14.*repack"):
        open_image_store(tmp_path / "img.zip").read("a/x.jpg")


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats_long_names_folders_and_links(tmp_path: Path, tar_format: int) -> None:
    images = {
        "a/plain.jpg": b"1",
        f"{'v' * 90}/{'n' * 60}.jpg": b"22",
        "ä/ü.jpg": b"",
        "a/block.jpg": b"x" * 512,
    }
    if tar_format != tarfile.USTAR_FORMAT:
        images[f"{'w' * 200}/{'m' * 150}.jpg"] = b"333"
    headers = {"comment": "all"} if tar_format == tarfile.PAX_FORMAT else None
    with tarfile.open(tmp_path / "img.tar", "w", format=tar_format, pax_headers=headers) as archive:
        for name, data in images.items():
            folder = tarfile.TarInfo(f"{Path(name).parent.as_posix()}/")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            member = tarfile.TarInfo(f"./{name}" if name == "a/plain.jpg" else name)
            member.size = len(data)
            member.mtime = 1.5 if tar_format == tarfile.PAX_FORMAT else 1
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("a/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "plain.jpg"
        archive.addfile(link)
    store = open_image_store(tmp_path / "img.tar")
    assert {member: store.read(member) for member in store.members()} == images


def test_tar_sizes_in_binary(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a/x.jpg")
    member.size = 5
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + (5).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "img.tar").write_bytes(bytes(header) + b"hello".ljust(512, b"\0") + bytes(1024))
    assert open_image_store(tmp_path / "img.tar").read("a/x.jpg") == b"hello"


def test_every_cut_of_a_zip_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "img.zip"
    write_images(path, dict(list(IMAGES.items())[:3]))
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"img\.zip: not a readable zip archive.*copy it again"):
            open_image_store(path)


def test_a_cut_tar_is_noticed_unless_all_its_members_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "img.tar"
    images = dict(list(IMAGES.items())[:3])
    write_images(path, images)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        members = [(member.offset, member.offset_data + member.size) for member in archive.getmembers()]
    refused = 0
    for length in range(1, len(whole), 13):
        path.write_bytes(whole[:length])
        if any(start < length < end for start, end in members):
            with pytest.raises(DataError, match=r"img\.tar: the archive is cut short.*copy it again"):
                open_image_store(path)
            refused += 1
        else:
            store = open_image_store(path)
            assert len(list(store.members())) == sum(length >= end for _, end in members)
            assert all(store.read(member) == images[member] for member in store.members())
    assert refused > 100


def test_damage_within_a_zip_member_is_noticed(tmp_path: Path) -> None:
    write_images(tmp_path / "img.zip", IMAGES)
    data = bytearray((tmp_path / "img.zip").read_bytes())
    member = "video0/00000000_img_front.jpg"
    data[data.index(IMAGES[member]) + 300] ^= 0xFF
    (tmp_path / "img.zip").write_bytes(data)
    store = open_image_store(tmp_path / "img.zip")
    with pytest.raises(DataError, match=f"img.zip:{member}.*checksum"):
        store.read(member)
    assert store.read("video1/00000001_img_front.jpg") == IMAGES["video1/00000001_img_front.jpg"]


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "img.tar"
    for data, words in [
        (b"", "empty"),
        (b"x" * 100, "cut short"),
        (b"x" * 2000, "not a tar"),
        (gzip.compress(os.urandom(2000)), "compressed with gzip.*decompress"),
    ]:
        path.write_bytes(data)
        with pytest.raises(DataError, match=words):
            open_image_store(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["img.zip", "img.tar"])
def test_threads_share_one_store(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path / kind, IMAGES)
    store = open_image_store(tmp_path / kind)
    wrong: list[str] = []
    start = threading.Barrier(4)

    def read_all(shift: int) -> None:
        members = list(IMAGES)
        start.wait()
        for step in range(300):
            member = members[(step * (shift + 1) + shift) % len(members)]
            if store.read(member) != IMAGES[member]:
                wrong.append(member)

    threads = [threading.Thread(target=read_all, args=(shift,)) for shift in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["img.zip", "img.tar", "img", "img_decompressed.hdf5"])
def test_a_forked_process_reads_while_its_parent_does(
    tmp_path: Path, kind: str, fake_h5py: list[int]
) -> None:
    if kind.endswith("hdf5"):
        (tmp_path / kind).write_bytes(b"\x89HDF")
    else:
        write_images(tmp_path / kind, IMAGES)
    store = open_image_store(tmp_path / kind)

    def reads_right() -> bool:
        return all(store.read(member) == data for _ in range(50) for member, data in IMAGES.items())

    child = os.fork()
    if child == 0:
        code = 1
        try:
            own_handle = not kind.endswith("hdf5") or fake_h5py[0] != os.getpid()
            code = 0 if reads_right() and own_handle and fake_h5py[-1:] in ([], [os.getpid()]) else 1
        finally:
            os._exit(code)
    assert reads_right()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_hdf5_without_h5py_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "img_decompressed.hdf5").touch()
    with pytest.raises(DataError, match=r"h5py.*pip install h5py.*zip or tar"):
        open_image_store(tmp_path / "img_decompressed.hdf5")


def test_hdf5_members(tmp_path: Path, fake_h5py: list[int]) -> None:
    path = tmp_path / "img_decompressed.hdf5"
    path.write_bytes(b"\x89HDF")
    store = open_image_store(find_image_store(tmp_path))
    assert sorted(store.members()) == sorted(IMAGES)
    assert {member: store.read(member) for member in IMAGES} == IMAGES
    assert len(fake_h5py) == 1
    assert store.missing(["video0/none.jpg", "none/x.jpg"]) == ["video0/none.jpg", "none/x.jpg"]
    with pytest.raises(DataError, match=r"hdf5 has no image 'none/x\.jpg'"):
        store.read("none/x.jpg")
    path.write_bytes(b"cut")
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        open_image_store(path)


def test_genuine_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is optional and not installed")
    with h5py.File(tmp_path / "img_decompressed.hdf5", "w") as file:
        for member, data in IMAGES.items():
            file.create_dataset(member, data=np.frombuffer(data, np.uint8))
    store = open_image_store(find_image_store(tmp_path))
    assert sorted(store.members()) == sorted(IMAGES)
    assert {member: store.read(member) for member in IMAGES} == IMAGES
    with pytest.raises(DataError, match="has no image"):
        store.read("video0/none.jpg")


def test_a_shared_store_is_indexed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "img.zip"
    write_images(path, IMAGES)
    opened: list[Path] = []

    def count_and_open(store_path: Path) -> archives.ImageStore:
        opened.append(store_path)
        return open_image_store(store_path)

    monkeypatch.setattr(archives, "open_image_store", count_and_open)
    store = shared_image_store(path)
    assert shared_image_store(str(path)) is store
    assert len(opened) == 1
    path.unlink()
    write_images(path, {"new/x.jpg": b"new"})  # another file of the same name is another store
    assert shared_image_store(path).read("new/x.jpg") == b"new"
    with pytest.raises(DataError, match="no such image archive"):
        shared_image_store(tmp_path / "none.zip")


def test_genuine_shift_archive(shared_data: Path) -> None:
    for view, num_bytes in (("front", 94609), ("left_90", 94401)):
        store = open_image_store(find_image_store(shared_data / "shift_sample/discrete/images/val" / view))
        (member,) = store.members()
        assert member == f"007b-4e72/00000100_img_{view}.jpg"
        assert len(store.read(member)) == num_bytes
        assert store.read_size(member) == (1280, 800)
