"""What the sources never do: run what a file holds, use a shell, or reach for a network unasked."""

import ast
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from apps.conftest import source
from bilevel_apps.compare import ui
from bilevel_apps.tracking.tracker import mlflow_client
from bilevel_data import write_store

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (*(f"packages/{name}/src" for name in ("core", "models", "data", "meta")), "apps/src")
SCRIPTS = ("benchmarks",)

# Reading with these runs what the file says.
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
NEVER = {
    "eval",
    "exec",
    "builtins.eval",
    "builtins.exec",
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "torch.export.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "pandas.read_pickle",
    "shutil.unpack_archive",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
}
METHODS = {"extractall", "extract"}  # of an archive: they write where its names say
NETWORK = {"ftplib", "http", "httpx", "requests", "socket", "socketserver", "telnetlib", "urllib"}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}

# (file, what it does): why it may.
EXPORT = "apps/src/bilevel_apps/predict/export.py"
ALLOWED = {(EXPORT, "calls torch.export.load"): "its own bytes, a moment old"}
# Which modules may use the network at all: to download when asked to, and to wait for the server
# that they started.
NETWORKED = {
    "packages/data/src/bilevel_data/files/download.py",
    "apps/src/bilevel_apps/compare/ui.py",
}


def files(folders=FOLDERS):
    found = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert found
    return found


def name_of(path):
    return path.relative_to(ROOT).as_posix()


class Reader(ast.NodeVisitor):
    """Collects what a source imports, and what it does that is not allowed."""

    def __init__(self):
        self.meaning = {}
        self.modules = set()
        self.deeds = []

    def visit_Import(self, node):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            self.meaning[alias.asname or top] = alias.name if alias.asname else top
            self.modules.add(top)

    def visit_ImportFrom(self, node):
        self.modules.add((node.module or "").partition(".")[0])
        for alias in node.names:
            self.meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def visit_Call(self, node):
        called = self.full_name(node.func)
        if called in NEVER:
            self.deeds.append(f"calls {called}")
        if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            self.deeds.append(f"calls .{node.func.attr}()")
        if called in ("__import__", "importlib.import_module"):
            given = [a.value for a in node.args if isinstance(a, ast.Constant)]
            self.modules |= {str(value).partition(".")[0] for value in given}
        for keyword in node.keywords:
            self.keyword(keyword)
        self.generic_visit(node)

    def keyword(self, keyword):
        value = keyword.value
        refused = not (isinstance(value, ast.Constant) and value.value is False)
        if keyword.arg in ("shell", "allow_pickle") and refused:
            self.deeds.append(f"gives {keyword.arg}={ast.unparse(value)}")
        if keyword.arg == "weights_only":
            self.deeds.append("gives weights_only")  # only what unpickles takes it
        if keyword.arg == "Loader":
            self.deeds.append("gives Loader")

    def full_name(self, function):
        """What is called, by the name that it was imported from."""
        if isinstance(function, ast.Name):
            return self.meaning.get(function.id, function.id)
        if isinstance(function, ast.Attribute):
            return f"{self.full_name(function.value)}.{function.attr}"
        return ""


def read(source):
    """Return the modules that a source imports, and its deeds."""
    reader = Reader()
    tree = ast.parse(source)
    # A name means what it was imported as wherever that stands, so imports are read first.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            reader.visit(node)
    reader.visit(tree)
    found = [f"imports {name}" for name in sorted(reader.modules & UNPICKLERS)]
    return reader.modules, found + reader.deeds


@pytest.mark.parametrize("path", files(FOLDERS + SCRIPTS), ids=name_of)
def test_nothing_runs_what_a_file_holds(path):
    _, deeds = read(path.read_text("utf-8"))
    assert [deed for deed in deeds if (name_of(path), deed) not in ALLOWED] == []


def test_every_exception_is_still_needed():
    for name, deed in ALLOWED:
        assert deed in read((ROOT / name).read_text("utf-8"))[1]
    for name in NETWORKED:
        assert read((ROOT / name).read_text("utf-8"))[0] & NETWORK


def test_two_modules_use_the_network():
    using = {name_of(p) for p in files() if read(p.read_text("utf-8"))[0] & NETWORK}
    assert using == NETWORKED


def addresses(source):
    """The constants of a source that name a network interface."""
    texts = {n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)}
    return texts & {"0.0.0.0", "::", "", *LOOPBACK} if "socket" in source else texts & {"0.0.0.0"}


def test_servers_are_told_to_bind_to_loopback():
    """What really listens is looked at in `test_the_interface_listens_to_this_machine_alone`."""
    for path in files(FOLDERS + SCRIPTS):
        found = addresses(path.read_text("utf-8"))
        assert found <= LOOPBACK | {""}, path


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import joblib.numpy_pickle as j",
        "__import__('dill')",
        "importlib.import_module('shelve')\nimport importlib",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x')",
        "from torch import load as read\nread('x')",
        "from torch.hub import load_state_dict_from_url\nload_state_dict_from_url('x')",
        "f = lambda x: eval(x)",
        "import builtins\nbuiltins.exec('x')",
        "import yaml\nyaml.load(x)",
        "from yaml import unsafe_load\nunsafe_load(x)",
        "g(x, Loader=L)",
        "import zipfile\nzipfile.ZipFile(p).extractall(q)",
        "tar.extract(member)",
        "import shutil\nshutil.unpack_archive(p)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "run(x, shell=flag)",
        "import os\nos.system('x')",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "f(weights_only=True)",
    ],
)
def test_every_way_is_seen(line):
    assert read(line)[1] != []


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "store.load('train')",
        "import yaml\nyaml.safe_load(x)",
        "import safetensors.torch\nsafetensors.torch.load(x)",
        "np.savez(f, allow_pickle=False)",
        "run(x, shell=False)",
        "import ast\nast.literal_eval(x)",
    ],
)
def test_what_is_harmless_is_not_seen(line):
    assert read(line)[1] == []


# Runs commands in one process whose every internet socket is noted, and refused.
WATCHED = """
import io, json, sys
from importlib import import_module

MODULES = {"eval": "evaluate"}
opened = []

def watch(event, arguments):
    if event == "socket.bind" and arguments[1][:2] == ("::1", 0):
        return  # an HTTP library asks whether there is IPv6, and closes the socket
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        opened.append(f"{event} {arguments[0]}")
        raise ConnectionRefusedError(f"refused by the test: {event}")
    if event in ("socket.connect", "socket.bind", "socket.sendto") and arguments[0].family != 1:
        opened.append(f"{event} {arguments[1]}")
        raise ConnectionRefusedError(f"refused by the test: {event}")

sys.addaudithook(watch)
results = []
for words in json.loads(sys.argv[1]):
    name, *sys.argv = words
    sys.argv.insert(0, name)
    before = len(opened)
    sys.stdout = sys.stderr = said = io.StringIO()
    try:
        import_module(f"bilevel_apps.cli.{MODULES.get(name, name)}").main()
    except SystemExit as ended:
        status = ended.code
    finally:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    results.append([words[:2], status, opened[before:], said.getvalue()[-2000:]])
print(json.dumps(results))
"""


def watched(folder, *commands):
    """Run commands; returns (words, status, sockets, what was said) of each."""
    words = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def environment():
    left_out = {"MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"}
    return {k: v for k, v in os.environ.items() if k not in left_out} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store, settings of a run of a second that is tracked as usual, and pictures."""
    folder = tmp_path_factory.mktemp("offline")
    write_store(folder / "tiny.h5", source())
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "remote.yaml").write_text(
        yaml.safe_dump(TINY | {"tracking": {"uri": "http://127.0.0.1:9", "experiment": "x"}})
    )
    rng = np.random.default_rng(0)
    for c, i in itertools.product(range(32), range(2)):
        (folder / "pictures" / f"class-{c}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"class-{c}" / f"{i}.png")
    return folder


TINY = {
    "threads": 1,
    "device": "cpu",
    "episode": {"way": 5, "shot": 1, "query": 3},
    "model": {"filters": 4},
    "train": {"steps": 2, "meta_batch": 2, "validate_every": 2, "validate_episodes": 2},
}


@pytest.mark.process
def test_no_socket_without_download_or_a_tracking_address(folder):
    own = ["--option", "size=16"]
    results = watched(
        folder,
        ["data", "prepare", "folder", "--source", "pictures", "--out", "own.h5", *own],
        ["data", "verify", "own.h5"],
        ["data", "info", "tiny.h5"],
        ["train", "tiny.yaml", "--data", "tiny.h5", "--out", "runs/tiny"],
        ["eval", "runs/tiny", "--episodes", "2", "--baselines", "--track"],
        ["predict", "runs/tiny", "--support", "pictures", "--query", "pictures/class-0/0.png"],
        ["embed", "runs/tiny", "--out", "runs/tiny/pictures", "--track"],
        ["runs", "list"],
        ["tune", "--list"],
    )
    for words, status, sockets, said in results:
        assert (words, status, sockets) == (words, 0, []), said
        assert "warning: no tracking" not in said
    assert (folder / "runs" / "mlflow.db").exists()  # it was tracked, and not over the network


@pytest.mark.process
def test_with_them_sockets_are_seen(folder):
    """The control of the test before: these two want the network, and fail as they should."""
    download = ["--source", "raw", "--download", "--out", "omniglot.h5"]
    fetched, tracked = watched(
        folder,
        ["data", "prepare", "omniglot", *download],
        ["train", "remote.yaml", "--data", "tiny.h5", "--out", "runs/remote"],
    )
    _, status, sockets, said = fetched
    assert sockets
    assert status != 0
    assert said.startswith("error: https://")
    _, status, sockets, said = tracked
    assert sockets
    assert all("127.0.0.1" in line for line in sockets), sockets
    assert status == 0
    assert said.count("warning: ") == said.count("warning: no tracking at http://127.0.0.1:9") == 1


def test_the_interface_is_told_its_host():
    assert "--host=127.0.0.1" in ui._command("sqlite:///x.db", 5000)


@pytest.mark.process
@pytest.mark.filterwarnings("default")  # MLflow's own are not ours to mend
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_the_interface_listens_to_this_machine_alone(tmp_path):
    database = tmp_path / "mlflow.db"
    mlflow_client(f"sqlite:///{database}").search_experiments()
    words = ["-m", "bilevel_apps.cli.runs", "ui", "--uri", str(database), "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline().split()[0]
        port = int(address.rpartition(":")[2])
        assert address == f"http://127.0.0.1:{port}"
        assert listening(port) == {"0100007F"}
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def listening(port):
    """The local addresses, as the kernel writes them, at which something listens on a port."""
    rows = []
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        rows += path.read_text().splitlines()[1:] if path.exists() else []
    fields = [row.split() for row in rows]
    places = [line[1].rpartition(":") for line in fields if line[3] == "0A"]
    return {place for place, _, number in places if int(number, 16) == port}
