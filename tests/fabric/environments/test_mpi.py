"""The environment of mpirun; mpi4py is played by a module of the few names that are used."""

import socket
import sys
from types import ModuleType

import pytest

from fulmen.fabric.environments import LightningEnvironment, MPIEnvironment, find_environment


class World:
    """COMM_WORLD of one of several processes, which are `hosts` by rank."""

    def __init__(self, rank, hosts):
        self.rank, self.hosts, self.exchanges = rank, hosts, []

    def Get_size(self):
        return len(self.hosts)

    def Get_rank(self):
        return self.rank

    def allgather(self, mine):
        self.exchanges.append("allgather")
        assert mine == self.hosts[self.rank]
        return self.hosts

    def bcast(self, value, root):
        self.exchanges.append("bcast")
        assert (value is None) is (self.rank != root)
        return 5555 if value is None else value


@pytest.fixture
def mpi(monkeypatch):
    """Install an mpi4py of a world."""

    def install(rank, hosts):
        package, module = ModuleType("mpi4py"), ModuleType("mpi4py.MPI")
        package.MPI, module.COMM_WORLD = module, World(rank, hosts)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, "mpi4py", package)
        monkeypatch.setitem(sys.modules, "mpi4py.MPI", module)
        monkeypatch.setattr(socket, "gethostname", lambda: hosts[rank])
        return module.COMM_WORLD

    return install


HOSTS = ["zeus", "apollo", "zeus", "apollo", "zeus"]


@pytest.mark.parametrize(("rank", "local_rank", "node_rank"), [(0, 0, 1), (1, 0, 0), (2, 1, 1), (3, 1, 0), (4, 2, 1)])
def test_what_the_world_says(mpi, rank, local_rank, node_rank):
    world = mpi(rank, HOSTS)
    environment = MPIEnvironment()
    assert MPIEnvironment.detect()
    assert isinstance(find_environment(), MPIEnvironment)
    assert environment.creates_processes_externally
    assert (environment.world_size(), environment.global_rank()) == (5, rank)
    assert world.exchanges == []  # a process that is asked alone does not wait for the others
    assert (environment.local_rank(), environment.node_rank()) == (local_rank, node_rank)
    assert environment.main_address == "zeus"
    assert environment.main_port == environment.main_port
    assert (environment.main_port == 5555) is (rank != 0)
    assert world.exchanges == ["allgather", "bcast"]


def test_a_world_of_one_is_no_cluster(mpi):
    mpi(0, ["zeus"])
    assert not MPIEnvironment.detect()
    assert isinstance(find_environment(), LightningEnvironment)


def test_without_mpi4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert not MPIEnvironment.detect()
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fulmen\[mpi\]"'):
        MPIEnvironment()


def test_mpi4py_without_an_mpi(monkeypatch, tmp_path):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").touch()
    (tmp_path / "mpi4py" / "MPI.py").write_text("raise RuntimeError('cannot load the MPI library')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mpi4py", "mpi4py.MPI"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert not MPIEnvironment.detect()
    sys.modules.pop("mpi4py", None)
