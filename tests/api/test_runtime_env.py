"""Runtime environments carried out: directories, modules, installers, hooks; what is refused, and why."""

from __future__ import annotations

import os
import socket
import sys
import types
import zipfile

import pytest

import miniray as ray
from miniray.runtime_env import RuntimeEnv


@pytest.fixture
def session():
    def start(**env):
        return ray.init(num_cpus=2, runtime_env=env)

    yield start
    ray.shutdown()


@pytest.fixture
def project(tmp_path):
    """A directory with a module, a package, data and things to leave out."""
    root = tmp_path / "project"
    (root / "shapes" / "__pycache__").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("secret")
    (root / "shapes" / "__init__.py").write_text("from shapes.area import square\n")
    (root / "shapes" / "area.py").write_text("def square(x):\n    return x * x\n")
    (root / "shapes" / "__pycache__" / "old.pyc").write_text("old")
    (root / "single.py").write_text("NAME = 'single'\n")
    (root / "data.txt").write_text("42")
    (root / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (root / "run.sh").chmod(0o755)
    return root


@ray.remote
def look():
    found = {}
    for directory, below, names in os.walk("."):
        below[:] = [name for name in below if name != "__pycache__"]
        for name in names:
            found[os.path.relpath(os.path.join(directory, name))] = True
    return os.getcwd(), sorted(found)


def zipped(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in entries.items():
            archive.writestr(name, text)
    return str(path)


# ---- working_dir and py_modules


def test_a_job_works_in_a_copy_of_its_directory(session, project):
    session(working_dir=str(project))

    @ray.remote
    def use():
        import shapes
        import single

        ran = os.popen("./run.sh").read().strip()
        return shapes.square(3), single.NAME, open("data.txt").read(), ran, os.getcwd()

    square, name, data, ran, cwd = ray.get(use.remote())
    assert (square, name, data, ran) == (9, "single", "42", "ran")
    assert cwd != str(project)
    _, files = ray.get(look.remote())
    assert files == ["data.txt", "run.sh", "shapes/__init__.py", "shapes/area.py", "single.py"]

    @ray.remote
    class Reader:
        def read(self):
            return open("data.txt").read(), os.getcwd()

    assert ray.get(Reader.remote().read.remote()) == ("42", cwd)  # made once


def test_what_is_excluded_stays_at_home(session, project):
    (project / ".gitignore").write_text("*.txt\n!kept.txt\n/top/\n")
    (project / "kept.txt").write_text("")
    (project / "top").mkdir()
    (project / "top" / "a").write_text("")
    (project / "shapes" / "top").mkdir()
    (project / "shapes" / "top" / "b").write_text("")
    (project / "shapes" / ".gitignore").write_text("area.py\n")
    session(working_dir=str(project), excludes=["single.py", "*.sh"])
    _, files = ray.get(look.remote())
    assert files == [".gitignore", "kept.txt", "shapes/.gitignore", "shapes/__init__.py", "shapes/top/b"]


def test_links_are_followed_and_rings_end(session, project, tmp_path):
    (tmp_path / "elsewhere.txt").write_text("far")
    (project / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    (project / "ring").symlink_to(project)
    os.mkfifo(project / "pipe")
    session(working_dir=str(project))
    _, files = ray.get(look.remote())
    assert "link.txt" in files
    assert "pipe" not in files and not any(name.startswith("ring/") for name in files)


def test_modules_come_as_directories_files_archives_and_modules(session, project, tmp_path):
    wheel = zipped(tmp_path / "wheeled-1.0-py3-none-any.whl", {"wheeled.py": "ROUND = True\n"})
    (tmp_path / "given.py").write_text("GIVEN = 7\n")
    given = types.ModuleType("given")
    given.__file__ = str(tmp_path / "given.py")
    session(py_modules=[str(project / "shapes"), project / "single.py", wheel, given])

    @ray.remote
    def use():
        import given
        import shapes
        import single
        import wheeled

        return shapes.square(4), single.NAME, wheeled.ROUND, given.GIVEN

    assert ray.get(use.remote()) == (16, "single", True, 7)


def test_a_task_brings_an_archive_by_uri(session, tmp_path):
    session()
    archive = zipped(tmp_path / "code.zip", {"code-main/extra.py": "VALUE = 5\n", "code-main/data": "x"})

    @ray.remote
    def use():
        import extra

        return extra.VALUE, open("data").read()

    assert ray.get(use.options(runtime_env={"working_dir": f"file://{archive}"}).remote()) == (5, "x")
    with pytest.raises(ray.exceptions.RayTaskError) as failure:
        ray.get(use.remote())
    assert isinstance(failure.value, ModuleNotFoundError)


def test_subprocesses_and_nested_tasks_see_the_same_modules(session, project):
    session(py_modules=[str(project / "shapes")])

    @ray.remote
    def inner():
        import shapes

        return shapes.square(2)

    @ray.remote
    def outer():
        shown = os.popen(f"{sys.executable} -c 'import shapes; print(shapes.square(5))'").read()
        return int(shown), ray.get(inner.remote())

    assert ray.get(outer.remote()) == (25, 4)


# ---- what is refused


@pytest.mark.parametrize("entry", ["../out.txt", "/abs.txt", "a/../../b"])
def test_an_archive_cannot_write_outside_of_its_directory(session, tmp_path, entry):
    session()
    archive = zipped(tmp_path / "bad.zip", {entry: "x"})

    with pytest.raises(ray.exceptions.RuntimeEnvSetupError, match="leads out of its directory"):
        ray.get(look.options(runtime_env={"working_dir": f"file://{archive}"}).remote())
    assert not (tmp_path / "out.txt").exists()


def test_links_in_an_archive_are_refused(session, tmp_path):
    session()
    path = tmp_path / "linked.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")

    with pytest.raises(ray.exceptions.RuntimeEnvSetupError, match="link or a special file"):
        ray.get(look.options(runtime_env={"working_dir": f"file://{path}"}).remote())


def test_failures_reach_actors_and_leave_the_node_working(session, tmp_path):
    session()
    (tmp_path / "no.zip").write_text("not a zip")
    env = {"working_dir": f"file://{tmp_path}/no.zip"}

    @ray.remote
    class Actor:
        def ping(self):
            return "pong"

    with pytest.raises(ray.exceptions.RuntimeEnvSetupError, match=r"\[Node .+\] not a zip archive"):
        ray.get(Actor.options(runtime_env=env).remote().ping.remote())
    assert ray.get(Actor.remote().ping.remote()) == "pong"


def test_local_paths_belong_to_jobs(session, project):
    session()
    for env in ({"working_dir": "."}, {"py_modules": [str(project)]}):
        with pytest.raises(ValueError, match="init"):
            look.options(runtime_env=env)
    with pytest.raises(ValueError, match=r"must end in \.zip"):
        look.options(runtime_env={"working_dir": "https://example.org/code.tar"})


@pytest.mark.parametrize(
    ("env", "error"),
    [
        ({"working_dir": 10}, TypeError),
        ({"working_dir": "/does/not/exist"}, ValueError),
        ({"working_dir": "s3://bucket/no_ending"}, ValueError),
        ({"py_modules": "."}, TypeError),
        ({"py_modules": [10]}, TypeError),
        ({"py_modules": ["does_not_exist"]}, ValueError),
        ({"excludes": "a"}, TypeError),
        ({"pip": 3}, TypeError),
        ({"pip": "no-such-file.txt"}, ValueError),
        ({"pip": {"packages": [], "colour": "red"}}, ValueError),
        ({"uv": {"packages": ["a"], "uv_check": "yes"}}, TypeError),
        ({"pip": ["a"], "uv": ["b"]}, ValueError),
        ({"worker_process_setup_hook": 3}, TypeError),
    ],
)
def test_wrong_fields_are_refused_before_anything_starts(env, error):
    with pytest.raises(error):
        ray.init(runtime_env=env)
    assert not ray.is_initialized()


# ---- interpreters and installers


def wheel(directory, name, version, text):
    """A minimal wheel, so that installing needs no network."""
    path = directory / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    zipped(path, {
        f"{name}.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    })
    return str(path)


def test_pip_installs_into_an_environment_of_its_own(session, tmp_path):
    session()
    env = {"pip": {"packages": [wheel(tmp_path, "tinypkg", "1.2", "ANSWER = 12\n")],
                   "pip_install_options": ["--no-index"]}}

    @ray.remote
    def use():
        import tinypkg

        import miniray

        return tinypkg.ANSWER, sys.prefix, miniray.is_initialized()

    answer, prefix, connected = ray.get(use.options(runtime_env=env).remote())
    assert (answer, connected) == (12, True)
    assert prefix != sys.prefix
    assert ray.get(use.options(runtime_env=env).remote())[1] == prefix  # made once
    with pytest.raises(ModuleNotFoundError):
        ray.get(use.remote())


def test_an_installers_last_words_are_in_the_error(session, tmp_path):
    session()
    env = {"pip": {"packages": ["no-such-package-at-all"],
                   "pip_install_options": ["--no-index", "--disable-pip-version-check"]}}
    with pytest.raises(ray.exceptions.RuntimeEnvSetupError) as failure:
        ray.get(look.options(runtime_env=env).remote())
    assert "No matching distribution found for no-such-package-at-all" in str(failure.value)
    assert "[Node " in str(failure.value)


def test_a_setup_that_takes_too_long_is_given_up(session):
    session()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}/never.zip"
        env = {"working_dir": uri, "config": {"setup_timeout_seconds": 1}}
        with pytest.raises(ray.exceptions.RuntimeEnvSetupError, match="setup_timeout_seconds=1"):
            ray.get(look.options(runtime_env=env).remote(), timeout=60)


def test_py_executable_runs_the_workers(session, tmp_path):
    session()
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nWRAPPED=yes exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)

    @ray.remote
    def wrapped():
        return os.environ.get("WRAPPED")

    assert ray.get(wrapped.options(runtime_env={"py_executable": str(wrapper)}).remote()) == "yes"


def test_py_executable_may_be_a_file_of_the_working_dir(session, tmp_path):
    (tmp_path / "start.sh").write_text(f'export STARTED_BY=script\nexec {sys.executable} "$@"\n')
    session(working_dir=str(tmp_path), py_executable="sh start.sh")

    @ray.remote
    def started_by():
        return os.environ["STARTED_BY"], os.path.exists("start.sh")

    assert ray.get(started_by.remote(), timeout=120) == ("script", True)



def test_conda_is_refused_by_name(session):
    session()
    with pytest.raises(ray.exceptions.RuntimeEnvSetupError, match="'conda' is not supported"):
        ray.get(look.options(runtime_env={"conda": "base"}).remote())


# ---- hooks and variables


def test_a_hook_runs_before_the_first_task_of_each_worker(session):
    def hook():
        os.environ["HOOKED"] = str(int(os.environ.get("HOOKED", "0")) + 1)

    session(worker_process_setup_hook=hook)

    @ray.remote
    class Actor:
        def __init__(self):
            self.seen = os.environ["HOOKED"]

        def both(self):
            return self.seen, os.environ["HOOKED"]

    @ray.remote
    def task():
        return os.environ["HOOKED"]

    assert ray.get(Actor.remote().both.remote()) == ("1", "1")
    assert ray.get([task.remote() for _ in range(4)]) == ["1"] * 4


def test_a_hook_by_name_and_one_that_fails(session, tmp_path):
    (tmp_path / "hooks.py").write_text("import os\ndef good():\n    os.environ['BY_NAME'] = 'yes'\n"
                                       "def bad():\n    raise ValueError('the hook broke')\n")
    session(py_modules=[str(tmp_path / "hooks.py")])

    @ray.remote
    def seen():
        return os.environ.get("BY_NAME")

    @ray.remote
    class Actor:
        def ping(self):
            return True

    good, bad = ({"worker_process_setup_hook": f"hooks.{name}"} for name in ("good", "bad"))
    assert ray.get(seen.options(runtime_env=good).remote()) == "yes"
    with pytest.raises(ray.exceptions.RuntimeEnvSetupError, match="the hook broke"):
        ray.get(seen.options(runtime_env=bad).remote())
    with pytest.raises(ray.exceptions.RayActorError, match="Failed to execute the setup hook"):
        ray.get(Actor.options(runtime_env=bad).remote().ping.remote())
    with pytest.raises(ValueError, match="init"):
        seen.options(runtime_env={"worker_process_setup_hook": lambda: None})


def test_a_hook_that_cannot_be_pickled_is_refused_by_init():
    import threading

    lock = threading.Lock()
    with pytest.raises(ray.exceptions.RuntimeEnvSetupError, match="Failed to export the setup function"):
        ray.init(runtime_env={"worker_process_setup_hook": lambda: lock.acquire()})
    assert not ray.is_initialized()


def test_variables_build_on_what_is_there(session):
    session(env_vars={"PATH": "${PATH}:/opt/of/the/job"})

    @ray.remote
    def path():
        return os.environ["PATH"]

    found = ray.get(path.remote())
    assert found.endswith(":/opt/of/the/job") and len(found) > len(":/opt/of/the/job")


def test_an_environment_is_a_dict_that_travels():
    env = RuntimeEnv(pip=["a", "a", "b"], env_vars={"X": "1"})
    back = RuntimeEnv.deserialize(env.serialize())
    assert back["pip"]["packages"] == ["a", "b"]
    assert back["env_vars"] == {"X": "1"}
    assert RuntimeEnv.deserialize(back.serialize()) == back
