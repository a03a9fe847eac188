"""What a program is told at its start, and what its environment may say in its stead."""

import os
import subprocess
import sys
import textwrap

import pytest

import miniray as ray


def run(folder, code, *flags, **variables):
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    return subprocess.run(
        [sys.executable, *flags, str(script)],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_environment_chooses_hook_encoding_and_folder(tmp_path, monkeypatch):
    (tmp_path / "house_rules.py").write_text(
        "def hook(env):\n    return {**(env or {}), 'env_vars': {'HOUSE': 'ours'}}\n"
    )
    (tmp_path / "files").mkdir()
    monkeypatch.delenv("MINIRAY_TMPDIR", raising=False)
    done = run(
        tmp_path,
        """
        import logging, os
        import miniray as ray

        context = ray.init(num_cpus=1, runtime_env={"working_dir": os.environ["FILES"]})

        @ray.remote
        def task():
            logging.getLogger("there").info("of the task")
            return os.environ["HOUSE"]

        print(ray.get(task.remote()), context.address_info["session_dir"])
        """,
        FILES=str(tmp_path / "files"),
        RAY_RUNTIME_ENV_HOOK="house_rules.hook",
        RAY_LOGGING_CONFIG_ENCODING="TEXT",
        RAY_TMPDIR=str(tmp_path / "made"),
    )
    assert done.stdout.startswith(f"ours {tmp_path / 'made'}"), done
    for words in ("Pushing file package", "Successfully pushed", "Started a local Ray", "of the task"):
        [line] = [line for line in done.stderr.splitlines() if words in line]
        assert "job_id=" in line and "timestamp_ns=" in line


def test_a_hook_that_is_not_there_is_named(tmp_path):
    done = run(tmp_path, "import miniray as ray; ray.init()", RAY_RUNTIME_ENV_HOOK="house_rules.hook")
    assert done.returncode and "runtime_env_hook 'house_rules.hook' is no module.function here" in done.stderr


def test_a_definition_that_cannot_be_imported_says_so(tmp_path):
    done = run(
        tmp_path,
        """
        import os, shutil, sys, tempfile
        import miniray as ray

        folder = tempfile.mkdtemp()
        with open(os.path.join(folder, "short_lived.py"), "w") as file:
            file.write("")
        sys.path.append(folder)
        import short_lived
        shutil.rmtree(folder)

        @ray.remote
        def task():
            return short_lived

        @ray.remote
        class Actor:
            def method(self):
                return short_lived

        ray.init(num_cpus=1)
        for call in (task.remote, lambda: Actor.remote().method.remote()):
            try:
                ray.get(call())
            except Exception as error:
                print(error)
        """,
    )
    assert "RuntimeError: The remote function failed to import" in done.stdout
    assert "RuntimeError: The actor with name Actor failed to import" in done.stdout
    assert done.stdout.count("ModuleNotFoundError: No module named 'short_lived'\n") == 2


def test_a_folder_for_one_session(tmp_path):
    with pytest.raises(ValueError, match="absolute"):
        ray.init(_temp_dir="relative")
    assert not ray.is_initialized()
    with ray.init(num_cpus=1, _temp_dir=str(tmp_path / "sessions")) as context:
        assert context.address_info["session_dir"].startswith(str(tmp_path / "sessions"))
    assert os.listdir(tmp_path / "sessions") == []


def test_the_kernel_takes_workers_before_daemons(ray_start):
    @ray.remote
    def adjustment():
        with open("/proc/self/oom_score_adj") as own, open(f"/proc/{os.getppid()}/oom_score_adj") as zygote:
            return int(own.read()), int(zygote.read())

    worker, zygote = ray.get(adjustment.remote())
    assert worker == 1000 and worker > zygote


def test_joining_a_cluster_is_announced_and_takes_no_system_config(ray_start_cluster):
    ray_start_cluster.add_node(num_cpus=1)
    address = ray_start_cluster.address
    with pytest.raises(ValueError, match="_system_config"):
        ray.init(address, _system_config={"x": 1})
    done = subprocess.run(
        [sys.executable, "-c", f"import miniray as ray; ray.init({address!r})"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert f"Connecting to existing Ray cluster at address: {address}" in done.stderr
    assert "Connected to Ray cluster." in done.stderr


def test_workers_look_for_modules_as_their_driver_was_told_to(tmp_path):
    code = """
        import sys
        import miniray as ray

        ray.init(num_cpus=1)

        @ray.remote
        def flags():
            return sys.flags.no_site, sys.flags.no_user_site

        fresh = flags.options(runtime_env={"env_vars": {"PYTHONHASHSEED": "1"}})
        print(ray.get([flags.remote(), fresh.remote()]))
    """
    assert run(tmp_path, code, "-S").stdout.strip() == "[(1, 0), (1, 0)]"
    assert run(tmp_path, code, "-s").stdout.strip() == "[(0, 1), (0, 1)]"
