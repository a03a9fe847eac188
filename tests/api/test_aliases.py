"""A program that calls the package by another name: its workers know that name too."""

from __future__ import annotations

import subprocess
import sys
import textwrap

ALIASED = """
    import sys
    import miniray
    sys.modules["ray"] = miniray
    import ray

    @ray.remote
    def by_name():
        import ray as imported
        return imported.__name__, imported.is_initialized()

    @ray.remote
    class Asker:
        def ask(self):
            import ray
            return ray.get(by_name.remote())

    with ray.init(num_cpus=2):
        print(ray.get(by_name.remote()), ray.get(Asker.remote().ask.remote()))
"""

SUBSTITUTED = """
    import ray

    @ray.remote
    def extra():
        return ray.extra

    with ray.init(num_cpus=1):
        print(ray.__name__, ray.get(extra.remote()))
"""

SUBSTITUTE = """
    import sys
    import miniray
    miniray.extra = "set up by the substitute"
    sys.modules["ray"] = miniray
"""


REACHING = """
    import ray

    @ray.remote
    def reach():
        return ray._private.worker.answer

    with ray.init(num_cpus=1):
        print(ray._private.worker.answer, ray.get(reach.remote()))
"""

FINDER = """
    import importlib.util, os
    class Finder:
        def find_spec(self, name, path=None, target=None):
            here = os.path.join(os.path.dirname(__file__), *name.split(".")[1:])
            if name.startswith("ray._private"):
                place = here + ("/__init__.py" if os.path.isdir(here) else ".py")
                if os.path.exists(place):
                    return importlib.util.spec_from_file_location(name, place)
    sys.meta_path.insert(0, Finder())
    import ray._private
"""


def run(code, *paths):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {list(paths)}\n" + textwrap.dedent(code)],
        capture_output=True, text=True, timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_workers_import_the_package_by_the_drivers_name():
    assert run(ALIASED) == "('miniray', True) ('miniray', True)"


def test_workers_import_the_drivers_substitute_package(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text(textwrap.dedent(SUBSTITUTE))
    assert run(SUBSTITUTED, str(tmp_path)) == "miniray set up by the substitute"


def test_a_substitutes_submodules_are_loaded_as_ray_loads_its_own(tmp_path):
    (tmp_path / "ray" / "_private").mkdir(parents=True)
    (tmp_path / "ray" / "__init__.py").write_text(textwrap.dedent(SUBSTITUTE) + textwrap.dedent(FINDER))
    (tmp_path / "ray" / "_private" / "__init__.py").write_text("__path__ = []")
    (tmp_path / "ray" / "_private" / "worker.py").write_text("answer = 42")
    assert run(REACHING, str(tmp_path)) == "42 42"


def test_the_genuine_package_is_not_imported_for_an_alias(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise RuntimeError('the genuine one')")
    (tmp_path / "ray" / "_raylet.so").write_text("")
    assert run(ALIASED, str(tmp_path)) == "('miniray', True) ('miniray', True)"
