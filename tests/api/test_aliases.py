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


def test_the_genuine_package_is_not_imported_for_an_alias(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise RuntimeError('the genuine one')")
    (tmp_path / "ray" / "_raylet.so").write_text("")
    assert run(ALIASED, str(tmp_path)) == "('miniray', True) ('miniray', True)"
