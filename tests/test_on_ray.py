"""Lifting on a Ray cluster: the store of one process, whatever dies meanwhile; what is no cluster is said at once."""

import ast
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conftest import ColorTeacher
from cuao3d.cli import main
from cuao3d.errors import InputError, NotFoundError, NotInstalledError
from cuao3d.pipeline import fuse, on_ray
from cuao3d.pipeline.on_ray import RayCluster, check_sees
from test_shards import Gray, Rooms, content_of, fill


def test_without_ray_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NotInstalledError, match=r"--ray needs Ray, .*: pip install 'cuao3d\[cluster\]'"):
        fill(tmp_path / "store", ray=RayCluster())


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:{port}", r"at 127\.0\.0\.1:\d+ cannot be joined: .*refused.*`ray status`"),
        ("ray://127.0.0.1:{port}", "cannot be joined: .*refused"),
        ("127.0.0.1", r"--ray is '127\.0\.0\.1'; expected HOST:PORT"),
    ],
)
def test_an_address_that_does_not_answer_is_one_line(tmp_path, address, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    monkeypatch.setitem(sys.modules, "ray.exceptions", type(sys)("ray.exceptions"))
    monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: False, raising=False)
    with pytest.raises(InputError, match=said):
        fill(tmp_path / "store", ray=RayCluster(address.format(port=unused_port())))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ray", "a:1", "b:2"], "--ray takes one address, not a:1 b:2"),
        (["--device", "cuda:1", "--ray"], "With --ray, --device is cpu or cuda, not cuda:1"),
    ],
)
def test_options_that_do_not_go_with_ray_are_refused(tmp_path, room_folder, capsys, options, said):
    assert main(["fuse", str(room_folder), "--out", str(tmp_path / "store"), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_node_that_does_not_see_the_data_says_its_name_and_the_path(tmp_path):
    check_sees([tmp_path])
    with pytest.raises(
        NotFoundError, match=rf"The node {socket.gethostname()} .* does not see {tmp_path}/data\. Mount"
    ):
        check_sees([tmp_path, tmp_path / "data"])


# What follows starts Ray, which takes seconds.


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of two nodes on loopback, each with one core, joined by this process."""
    for key, value in on_ray.ALONE.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    of_node = {"num_cpus": 1, "object_store_memory": on_ray.OBJECT_STORE, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={**of_node, "num_cpus": 0, "include_dashboard": False})
    added = [cluster.add_node(**of_node) for _ in range(2)]
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster, added
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_two_nodes_make_the_store_of_one_process_and_then_find_nothing_to_do(nodes, tmp_path, capsys):
    fill(tmp_path / "serial", broken=(3,))
    fill(tmp_path / "ray", broken=(3,), ray=RayCluster())
    assert content_of(tmp_path / "ray") == content_of(tmp_path / "serial")
    fill(tmp_path / "ray", broken=(3,))
    said = capsys.readouterr().err
    assert "4 scenes were there already" in said
    assert said.count("left out room-3: room 3 is broken") == 3


class Slow(Rooms):
    """Rooms that take their time, and tell which process reads them."""

    def __init__(self, count: int, notes: Path) -> None:
        super().__init__(count)
        self.notes = notes

    def __getitem__(self, index):
        (self.notes / f"{index}-{os.getpid()}").touch()
        time.sleep(2)
        return super().__getitem__(index)


def fuse_while(rooms, out, act):
    """Lift on the cluster; once the first scenes are read, do something."""

    def wait_and_act():
        while not list(rooms.notes.iterdir()):
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    try:
        fuse(rooms, [ColorTeacher()], out, cell=0.1, ray=RayCluster())
    finally:
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "node"])
def test_nothing_is_lost_with_a_worker_or_a_node_that_dies_in_mid_scene(nodes, tmp_path, victim, capsys):
    cluster, added = nodes
    notes = tmp_path / "notes"
    notes.mkdir()

    def kill():
        first = next(notes.iterdir())
        if victim == "worker":
            os.kill(int(first.name.split("-")[1]), signal.SIGKILL)
        else:
            cluster.remove_node(added[0], allow_graceful=False)

    fill(tmp_path / "serial")
    fuse_while(Slow(5, notes), tmp_path / "ray", kill)
    assert content_of(tmp_path / "ray") == content_of(tmp_path / "serial")
    said = capsys.readouterr().err
    assert "its worker died, it is begun anew" in said or victim == "node"  # a node may have been between two scenes


class Deadly(Rooms):
    """Rooms of which one kills the process that reads it."""

    def __getitem__(self, index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.slow
def test_a_scene_that_kills_its_worker_every_time_is_left_out_and_the_others_are_lifted(nodes, tmp_path, capsys):
    store = fuse(Deadly(3), [ColorTeacher()], tmp_path, cell=0.1, ray=RayCluster(num_tries=2))
    assert store.names() == ("room-0", "room-2")
    assert store.missing()["room-1"].startswith("its worker died 2 times: ")


class Elsewhere(Rooms):
    """Rooms in a folder that only this process sees: it is one of its open files."""

    def __init__(self, file: int) -> None:
        super().__init__(2)
        self.folders = (Path(f"/proc/self/fd/{file}"),)


@pytest.mark.slow
def test_a_node_without_the_data_ends_the_command_with_one_line(nodes, tmp_path):
    with open(os.devnull) as file:
        number = fcntl.fcntl(file, fcntl.F_DUPFD, 900)
        with pytest.raises(NotFoundError, match=rf"^The node .* does not see /proc/self/fd/{number}\. Mount it there"):
            fuse(Elsewhere(number), [ColorTeacher()], tmp_path, cell=0.1, ray=RayCluster())
        os.close(number)


@pytest.mark.slow
def test_a_node_with_another_teacher_ends_the_command_with_one_line(nodes, tmp_path):
    with pytest.raises(InputError, match=r"the teacher color has other weights, options or code than here"):
        fuse(Rooms(2), [ColorTeacher()], tmp_path, cell=0.1, ray=RayCluster(), load=lambda: [Gray()])


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 as the kernel writes them."""

ALONE_HERE = """
import os, sys
from pathlib import Path
from cuao3d.pipeline.on_ray import RayCluster, run_on_ray

def listening():
    def work(number):
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        lines += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
        mine = set()
        for process in Path("/proc").glob("[0-9]*/environ"):
            try:
                if os.environ["RAY_AUTH_TOKEN"].encode() in process.read_bytes():
                    mine |= {os.readlink(fd) for fd in process.parent.glob("fd/*") if fd.is_symlink()}
            except OSError:
                continue
        return [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in mine]
    return work

print(run_on_ray(listening, [0], ["job"], RayCluster(), lambda done, name: None)[0][0])
"""


@pytest.mark.slow
def test_a_cluster_that_is_started_here_listens_on_loopback_alone(tmp_path):
    ran = subprocess.run([sys.executable, "-c", ALONE_HERE], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = ast.literal_eval(ran.stdout.splitlines()[-1])
    assert found
    assert {address.split(":")[0] for address in found} <= LOOPBACK, found
