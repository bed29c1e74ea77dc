"""Real launchers: torchrun, SLURM, OpenMPI, and two hosts, which are network namespaces of this machine.

SLURM and OpenMPI come from Debian: `scripts/install_clusters.sh`. Without them these tests are skipped.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

INSTALL = "run scripts/install_clusters.sh as root"

SCRIPT = """
import os, sys
import torch
import torch.distributed as dist
from fulmen import Trainer
from fulmen.demos import BoringModel

fault = sys.argv[1] if len(sys.argv) > 1 else ""
devices, nodes = int(os.environ.get("DEVICES", "2")), int(os.environ.get("NODES", "1"))

class Model(BoringModel):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        self.log("mean_of_ranks", float(self.trainer.global_rank), sync_dist=True)
        is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if batch_idx == 2 and self.trainer.global_rank == 1 and (fault == "always" or fault == "once" and is_first):
            raise ValueError("a bad batch")
        return loss

trainer = Trainer(accelerator="cpu", devices=devices, num_nodes=nodes, max_epochs=1, limit_train_batches=4,
                  limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                  enable_model_summary=False)
trainer.fit(Model())
kind = type(trainer.plan.cluster_environment).__name__
mean = trainer.callback_metrics["mean_of_ranks"]
print(f"{kind} rank {trainer.global_rank} of {trainer.world_size},"
      f" node {trainer.node_rank}, local {trainer.local_rank}: {mean:.1f}\\n", end="")
"""


def variables(**more):
    unset = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR", "NODE_RANK", "OMP_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return kept | {"OMP_NUM_THREADS": "1"} | more


def run(command, folder, seconds=120, **more):
    (folder / "train.py").write_text(SCRIPT)
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=variables(**more), timeout=seconds, check=False
    )


def lines(done):
    return sorted(line for line in done.stdout.splitlines() if " rank " in line and "Error" not in line)


def expected(environment, nodes=1):
    node = [0, 1] if nodes == 2 else [0, 0]
    local = [0, 0] if nodes == 2 else [0, 1]
    return [f"{environment} rank {rank} of 2, node {node[rank]}, local {local[rank]}: 0.5" for rank in (0, 1)]


# torchrun


def torchrun(*options):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]


def test_torchrun(tmp_path):
    done = run([*torchrun(), "train.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert lines(done) == expected("TorchElasticEnvironment")


def test_torchrun_starts_again_what_failed_once(tmp_path):
    done = run([*torchrun("--max-restarts", "1"), "train.py", "once"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert lines(done) == expected("TorchElasticEnvironment")
    assert "Rank 1 of 2 failed first: ValueError: a bad batch" in done.stderr


def test_torchrun_gives_up(tmp_path):
    done = run([*torchrun(), "train.py", "always"], tmp_path)
    assert done.returncode == 1
    assert lines(done) == []


# SLURM


def port():
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


CONFIGURATION = """
ClusterName=fulmen
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={daemon_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of this machine; gives the variables by which `srun` finds it."""
    missing = [name for name in ("srun", "slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'SLURM'}: {INSTALL}")
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    folder.chmod(0o755)
    numbers = {"controller_port": port(), "daemon_port": port(), "cpus": os.cpu_count()}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, **numbers))
    found = {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("socket", "pid-file", "log-file")]
    munge += [f"--key-file={folder}/munge.key", f"--seed-file={folder}/munge.seed"]
    started = []
    try:
        for command in (
            ["munged", "--force", "--foreground", *munge],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", host],
        ):
            with (folder / "out.txt").open("a") as out:
                started.append(subprocess.Popen(command, env=os.environ | found, stdout=out, stderr=out))
            time.sleep(1)
        _wait_for(lambda: b"idle" in subprocess.run(["sinfo"], env=os.environ | found, capture_output=True).stdout)
        yield found
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "SLURM does not come up"
        time.sleep(0.5)


def srun(*options):
    return ["srun", "-n", "2", "--ntasks-per-node=2", "--overcommit", *options, sys.executable, "train.py"]


def test_slurm(tmp_path, slurm):
    done = run(srun(), tmp_path, **slurm)
    assert done.returncode == 0, done.stderr
    assert lines(done) == expected("SLURMEnvironment")


def test_a_failure_under_slurm(tmp_path, slurm):
    done = run([*srun(), "always"], tmp_path, **slurm)
    assert done.returncode == 1
    assert done.stderr.count("Rank 1 of 2 failed first: ValueError: a bad batch") == 1


# OpenMPI


def test_mpi(tmp_path):
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        pytest.skip(f"needs OpenMPI ({INSTALL}) and mpi4py")
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "train.py"]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert lines(done) == expected("MPIEnvironment")


# Two hosts


@pytest.fixture
def hosts():
    """Two network namespaces with a cable between them; gives their names."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and the command `ip`, to make network namespaces")
    names = [f"fulmen{os.getpid()}{letter}" for letter in "ab"]
    made = subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no network namespaces here: {made.stderr}")
    try:
        subprocess.run(["ip", "netns", "add", names[1]], check=True)
        cable = ["ip", "link", "add", "cable", "netns", names[0], "type", "veth", "peer", "cable", "netns", names[1]]
        subprocess.run(cable, check=True)
        for number, name in enumerate(names, start=1):
            inside = ["ip", "-n", name]
            subprocess.run([*inside, "addr", "add", f"10.200.0.{number}/24", "dev", "cable"], check=True)
            for device in ("lo", "cable"):
                subprocess.run([*inside, "link", "set", device, "up"], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def on_two_hosts(folder, hosts, *arguments):
    (folder / "train.py").write_text(SCRIPT)
    shared = {"MASTER_ADDR": "10.200.0.1", "MASTER_PORT": "29400", "GLOO_SOCKET_IFNAME": "cable"}
    shared |= {"DEVICES": "1", "NODES": "2"}
    started = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, sys.executable, "train.py", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=variables(**shared, NODE_RANK=str(number)),
        )
        for number, host in enumerate(hosts)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], *zip(*outputs, strict=True)


def test_two_hosts(tmp_path, hosts):
    codes, outputs, errors = on_two_hosts(tmp_path, hosts)
    assert codes == [0, 0], errors
    assert [output.strip() for output in outputs] == expected("LightningEnvironment", nodes=2)


def test_a_failure_on_another_host(tmp_path, hosts):
    codes, _, errors = on_two_hosts(tmp_path, hosts, "always")
    assert codes == [1, 1]
    assert "Rank 1 of 2 failed first: ValueError: a bad batch" in errors[0]
    assert errors[1].strip().endswith("(the report is on rank 0)")
