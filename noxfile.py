"""Sessions of the project; `nox -l` lists them."""

import os
import shutil
import sys
import zipfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"  # the CPU build of torch is invisible to others
nox.options.sessions = ["lint", "tests", "typing"]

ROOT = Path(__file__).parent
CORE, MODELS, DATA = "packages/core", "packages/models", "packages/data"
META, APPS = "packages/meta", "apps"
PACKAGES = (CORE, MODELS, DATA, META, APPS)
PINNED = ("-c", "constraints.txt")
BENCHMARKS = (
    "hyperiteration",
    "engines",
    "streams",
    "sampler",
    "evaluation",
    "scaling",
    "time_to_accuracy",
    "gradients",
)
FOR_ALL_BENCHMARKS = ("--threads", "--quick")  # to --json each would write over the one before
# What the engines are measured against.
TORCHOPT = ("torchopt==0.7.3", "optree==0.20.0", "graphviz==0.21")
PEERS = (*TORCHOPT, "higher==0.2.1", "jax", "jaxopt==0.8.5", "optimistix==0.1.0")
PEERS += ("equinox==0.13.8", "jaxtyping==0.3.11", "lineax==0.1.1")  # optimistix needs them
SITE = ("mkdocs-material", "mkdocstrings-python", "latex2mathml")
CHECKED = (*PACKAGES, "tests", "benchmarks", "tools", "docs", "noxfile.py")
# What a wheel must hold beside its modules.
PACKED = {"apps": "/presets/paper/", "models": "/pretrained/omniglot"}
ENV = {"NO_MKDOCS_2_WARNING": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONUNBUFFERED": "1"}
# The tests compile many small programs: JAX keeps them too, and spends little time on their speed.
JAX_IN_A_HURRY = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
NIGHTLY = ("-s", "-m", "nightly")
# Hypothesis marks its tests itself; 5,000 examples each instead of 200.
EXAMPLES = ("-m", "hypothesis and not nightly", "--hypothesis-profile", "nightly")
# What is imported and called is the same; how it behaves is proven by the whole tests.
FEW = ("--first-cases", "--hypothesis-profile", "few")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # there is a worker a core
# Each worker takes neighbouring tests, so that most fixtures of a module are made once.
WORKERS = ("-n", "auto", "--maxprocesses", "8", "--dist", "worksteal")
# griffelib reads the code for the reference pages; mypy, because `typing` shares the environment.
TESTED = ("pytest-xdist", "griffelib", "mypy", "types-PyYAML")
# torchopt has no wheel for a later Python, and takes long to build.
TESTED += tuple(f"{need}; python_version < '3.12'" for need in TORCHOPT)
# One environment for all that is built; those of `tests` are isolated.
BUILT = ("build", "hatchling")
BUILD = ("python", "-m", "build", "--no-isolation")
# What `tests` leaves out: these need another framework, processes, much time or a benchmark.
REST = "jax or process or docs or slow"
QUICK = f"not ({REST} or bench or nightly)"


def install_all(session: nox.Session, *more: str, test: bool = False) -> None:
    """Install the five packages together, because each of them is on no index."""
    extras = {CORE: ["torch"], MODELS: ["torchvision"], DATA: ["glyphs", "torchvision"]}
    own = []
    for package in PACKAGES:
        wanted = ",".join([*extras.get(package, []), *(["test"] if test else [])])
        own.append(f"./{package}[{wanted}]" if wanted else f"./{package}")
    session.install(*PINNED, *own, *more)


@nox.session
def demo(session: nox.Session) -> None:
    """Build a data set, meta-train two minutes, evaluate on unseen scripts, draw a picture."""
    install_all(session)
    folder = ROOT / "demo"
    folder.mkdir(exist_ok=True)
    store = folder / "glyphs.h5"
    if not store.exists():
        session.run("bilevel-data", "prepare", "glyphs", "--out", str(store), env=ENV)
    number = next(n for n in range(1, 1000) if not (folder / f"run-{n}").exists())
    run = f"demo/run-{number}"
    session.run(
        "bilevel-train",
        "--preset",
        "glyphs-5way-1shot",
        "--data",
        str(store),
        "--out",
        run,
        env=ENV,
    )
    session.run("bilevel-eval", run, "--baselines", "--track", env=ENV)
    session.run("bilevel-embed", run, "--out", f"{run}/pictures", "--track", env=ENV)
    runs = (Path(session.bin) / "bilevel-runs").relative_to(ROOT)
    session.log(f"the picture: {run}/pictures/pairs.png")
    session.log(f"the run in MLflow: {runs} ui --uri demo/mlflow.db")


def run_tests(session: nox.Session, marks: str, python: str = "python") -> None:
    """Run the tests with these marks, or as the arguments after -- say."""
    # Programs that are the same in two runs are compiled by JAX once.
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(Path(session.create_tmp()) / "jax")}
    arguments = session.posargs or (*WORKERS, "-m", marks)
    environment = ENV | ONE_THREAD | JAX_IN_A_HURRY | compiled
    session.run(python, "-m", "pytest", *arguments, env=environment, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the quick tests, in a few minutes (arguments after -- go to pytest instead)."""
    install_all(session, *TESTED, test=True)
    run_tests(session, QUICK)


def python_of_tests(session: nox.Session) -> str:
    """Return the Python of the environment of `tests`, which is made where there is none."""
    place = ROOT / ".nox" / "tests"
    if not list(place.glob("[bS]*/pytest*")):
        session.run(sys.executable, "-m", "nox", "-s", "tests", "--install-only", external=True)
    return str(next(place.glob("[bS]*/python*")))


@nox.session(name="tests-rest", venv_backend="none")
def tests_rest(session: nox.Session) -> None:
    """Run what `tests` leaves out, in its environment: all but benchmarks and nightly tests."""
    run_tests(session, f"({REST}) and not (bench or nightly)", python_of_tests(session))


@nox.session(name="tests-full")
def tests_full(session: nox.Session) -> None:
    """Run every test but the nightly ones."""
    install_all(session, *TESTED, test=True)
    run_tests(session, "not nightly")


@nox.session
def shuffled(session: nox.Session) -> None:
    """Run every test but the nightly ones in a random order, whose seed is said first."""
    install_all(session, *TESTED, "pytest-randomly", test=True)
    run_tests(session, "not nightly")


@nox.session
def coverage(session: nox.Session) -> None:
    """Run every test but the nightly ones; show the lines and branches that none of them took."""
    install_all(session, *TESTED, "coverage", test=True)
    session.run("coverage", "erase")
    session.run(
        *("coverage", "run", "-m", "pytest", "-m", "not nightly"),
        *(session.posargs or WORKERS),
        env=ENV | ONE_THREAD | JAX_IN_A_HURRY,
        success_codes=[0, 1],  # coverage writes files too, which a few tests count
    )
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report")


@nox.session
def mutation(session: nox.Session) -> None:
    """Change the engines and heads in 4,000 small ways; name the changes that no test notices."""
    session.install(*PINNED, f"./{CORE}[test]", f"./{MODELS}[test]", "mutmut")
    # mutmut takes a module's name from its path below src/, and copies what it changes from there.
    place = Path(session.create_tmp())
    for folder in ("src", "tests", "mutants"):
        shutil.rmtree(place / folder, ignore_errors=True)
    for package in (CORE, MODELS):
        shutil.copytree(f"{package}/src", place / "src", dirs_exist_ok=True)
    shutil.copytree("tests", place / "tests")
    shutil.copy("pyproject.toml", place)
    with session.chdir(place):
        session.run("mutmut", "run", *session.posargs, env=ENV | ONE_THREAD)
        session.run("mutmut", "results")
    session.log("what each of these changes: mutmut show NAME, in %s", place)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and security with ruff, and with import-linter who imports whom."""
    session.install(*PINNED, "ruff", "import-linter")
    session.run("ruff", "check", *CHECKED)
    session.run("ruff", "format", "--check", *CHECKED)
    sources = os.pathsep.join(f"{package}/src" for package in PACKAGES)
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": sources})


@nox.session(venv_backend="none")
def typing(session: nox.Session) -> None:
    """Check types with mypy, strictly, in the environment of `tests`."""
    sources = (f"{package}/src" for package in PACKAGES)
    session.run(
        python_of_tests(session),
        "-m",
        "mypy",
        *sources,
        "tools/results",
        "tools/publish",
        external=True,
    )


@nox.session
def alone(session: nox.Session) -> None:
    """Install each library from its wheel with no more than it needs; run some of its tests."""
    session.install(*PINNED, *BUILT)
    wheels = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    for package in (CORE, MODELS, DATA, META):
        session.run(*BUILD, "--wheel", "--outdir", str(wheels), package)
    # Meta needs the others, and is added to models, because torch takes long to install.
    for names in (["core"], ["data"], ["models", "meta"]):
        environment = wheels.parent / f"only-{names[0]}"
        session.run("python", "-m", "venv", "--clear", "--without-pip", str(environment))
        python = str(next(environment.glob("[bS]*/python*")))
        install = ("python", "-m", "pip", "--python", python, "install", "-q", *PINNED)
        for name in names:
            (wheel,) = wheels.glob(f"bilevel_{name}-*.whl")
            session.run(*install, f"{wheel}[test]", "--find-links", str(wheels))
            chosen = ("-m", QUICK, *FEW, f"tests/{name}")
            session.run(python, "-m", "pytest", *chosen, env=ENV | ONE_THREAD, external=True)


@nox.session
def build(session: nox.Session) -> None:
    """Build the five wheels and source distributions into dist/ and check what they hold."""
    session.install(*PINNED, *BUILT, "twine")
    shutil.rmtree("dist", ignore_errors=True)
    for package in PACKAGES:
        session.run(*BUILD, "--outdir", "dist", package)
    for wheel in Path("dist").glob("*.whl"):
        names = zipfile.ZipFile(wheel).namelist()
        needed = ["/py.typed"] + [part for name, part in PACKED.items() if name in wheel.name]
        for part in needed:
            if not any(part in name for name in names):
                session.error(f"{wheel}: holds nothing like {part}")
    session.run("twine", "check", "--strict", *map(str, Path("dist").glob("bilevel_*-*")))


@nox.session
def nightly(session: nox.Session) -> None:
    """Break, kill, load and fuzz at length, as docs/reliability.md says; the paper's claims."""
    install_all(session, test=True)
    for arguments in [session.posargs] if session.posargs else [NIGHTLY, EXAMPLES]:
        session.run("pytest", *arguments, env=ENV | ONE_THREAD)


@nox.session
def bounds(session: nox.Session) -> None:
    """Run the quick tests of core and models with the -- oldest or the newest torch and jax."""
    lowest = {}
    for package in (CORE, MODELS):
        extras = nox.project.load_toml(f"{package}/pyproject.toml")["project"][
            "optional-dependencies"
        ]
        lowest |= dict(need.split(">=") for need in extras["test"] if ">=" in need)
    oldest = session.posargs == ["oldest"]
    frameworks = [f"{n}=={lowest[n]}.*" if oldest else n for n in ("torch", "torchvision", "jax")]
    session.install(
        "--upgrade", *frameworks, f"./{CORE}[test]", f"./{MODELS}[test]", "pytest-xdist"
    )
    marks = "not (process or docs or slow or bench or nightly)"
    chosen = ("-m", marks, *WORKERS, "tests/core", "tests/models")
    session.run("pytest", *chosen, env=ENV | ONE_THREAD)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/, strictly, and check every link (-- serve: look at it)."""
    install_all(session, *SITE, "jax", "optax")  # the tutorials are run
    if session.posargs:
        session.run("mkdocs", *session.posargs, env=ENV)
    else:
        session.run("mkdocs", "build", "-q", env=ENV)
        session.run("python", "tools/docs/check_site.py", "site")


@nox.session
def results(session: nox.Session) -> None:
    """Make docs/results.md and the README's table from docs/records (-- check: compare them)."""
    install_all(session)
    session.run("python", "-m", "tools.results", *(session.posargs or ["write"]), env=ENV)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure, all benchmarks or those named: -- engines --threads 2; see benchmarks/README.md."""
    chosen = [name for name in session.posargs if name in BENCHMARKS]
    options = [option for option in session.posargs if option not in BENCHMARKS]
    given = [option.partition("=")[0] for option in options if option.startswith("--")]
    special = [name for name in given if name not in FOR_ALL_BENCHMARKS]
    if special and not chosen:
        session.error(
            f"{special[0]} is not for all benchmarks: name those that it is for, as in "
            f"-- sampler {special[0]} …; without names there are {', '.join(FOR_ALL_BENCHMARKS)}"
        )
    install_all(session, *PEERS)
    for name in chosen or BENCHMARKS:
        session.run("python", f"benchmarks/{name}.py", *options, env=ENV)


@nox.session
def gpu(session: nox.Session) -> None:
    """Prove, time and train on a GPU, in ten minutes: -- --mini-imagenet FILE.h5 --out FOLDER."""
    if shutil.which("nvidia-smi") is None:  # before gigabytes are installed
        session.error("no GPU here (nvidia-smi is not found): run this session where there is one")
    install_all(session)
    session.run("python", "benchmarks/gpu.py", *session.posargs, env=ENV)
