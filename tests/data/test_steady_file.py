"""The file that keeps a failure of the disk from HDF5, and raises it afterwards."""

import errno

import pytest

from bilevel_data.stores.deferred_errors import SteadyFile


class Broken:
    """A file of which one operation fails."""

    def __init__(self, file, operation):
        self.file, self.operation = file, operation

    def __getattr__(self, name):
        return self.fail if name == self.operation else getattr(self.file, name)

    def fail(self, *_):
        raise OSError(errno.EIO, f"{self.operation} failed")


def read(disk, at, count):
    buffer = memoryview(bytearray(b"?" * count))
    disk.seek(at)
    assert disk.readinto(buffer) == count
    return bytes(buffer)


def test_what_was_written_is_read_back(tmp_path):
    """And nothing but zeros after the end."""
    with SteadyFile(tmp_path / "file") as disk:
        assert disk.write(memoryview(b"0123456789")) == 10
        assert disk.tell() == 10
        assert read(disk, 3, 4) == b"3456"
        assert read(disk, 8, 4) == b"89\0\0"
        assert disk.truncate(5) == 5
        assert read(disk, 0, 8) == b"01234\0\0\0"
        disk.flush()
        disk.check()
    assert (tmp_path / "file").read_bytes() == b"01234"


def written(path, work):
    with SteadyFile(path) as disk:
        work(disk)


@pytest.mark.parametrize("operation", ["write", "readinto", "truncate"])
def test_a_failure_is_kept_and_raised_at_the_end(tmp_path, operation):
    calls = {
        "write": lambda disk: disk.write(memoryview(b"abcd")),
        "readinto": lambda disk: len(read(disk, 0, 4)),
        "truncate": lambda disk: disk.truncate(4),
    }

    def work(disk):
        assert disk.write(memoryview(b"0123456789")) == 10
        whole, disk._file = disk._file, Broken(disk._file, operation)
        assert calls[operation](disk) == 4  # HDF5 is told that all is well
        with pytest.raises(OSError, match=f"{operation} failed"):
            disk.check()
        disk._file = whole
        disk.seek(0)
        assert disk.write(memoryview(b"dropped")) == 7
        assert disk.truncate(2) == 2
        said.append("done")

    said = []
    with pytest.raises(OSError, match=f"{operation} failed"):
        written(tmp_path / "file", work)
    assert said == ["done"]
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_the_first_failure_is_the_one_that_counts(tmp_path):
    def work(disk):
        whole = disk._file
        for operation in ("write", "readinto", "truncate"):
            disk._file = Broken(whole, operation)
            disk.write(memoryview(b"ab"))
            assert read(disk, 0, 2) == bytes(2)
            disk.truncate(1)
        disk._file = whole

    with pytest.raises(OSError, match="write failed"):
        written(tmp_path / "file", work)


@pytest.mark.parametrize(("error", "raised"), [(RuntimeError, OSError), (KeyError, KeyError)])
def test_what_hdf5_stumbles_over_is_not_the_cause(tmp_path, error, raised):
    def work(disk):
        disk._file = Broken(disk._file, "write")
        disk.write(memoryview(b"ab"))
        raise error("of the consequences")

    with pytest.raises(raised):
        written(tmp_path / "file", work)
