"""The two commands in one process: results, errors with their exit codes, resuming, reproducible images."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")

from PIL import Image  # noqa: E402

from miniray.train import Result  # noqa: E402
from miniray.train.sync import STRATEGIES  # noqa: E402
from ml.gan import artifacts, config, generate, measure, model, train  # noqa: E402
from ml.gan.state import load_state  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--dataset", "synthetic:64", "--width", "4", "--latent-dim", "8", "--batch-size", "16", "--seed", "5",
    "--quality-images", "32", "--quality-every", "1",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of one step that wait for one another crawl on a machine that is busy with other things."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True)
def threads_put_back() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run_train(folder: Path, *more: str) -> int:
    return train.main([*TINY, "--save-dir", str(folder), *more])


def steps_saved(folder: Path) -> int:
    """How far the newest checkpoint of a run is."""
    checkpoint = Result.from_path(folder / "run").checkpoint
    assert checkpoint is not None
    return load_state(Path(checkpoint.path))[0].steps


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Run train, expect exit code 2 and a message; returns the message."""
    try:
        code = train.main(argv)
    except SystemExit as left:  # argparse's own way
        code = int(left.code or 0)
    assert code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two epochs of two merges each."""
    folder = tmp_path_factory.mktemp("trained")
    assert run_train(folder, "--epochs", "2", "--sync-interval", "2", "--preview-every", "1") == 0
    return folder


def test_a_run_leaves_models_pictures_and_its_story(trained: Path) -> None:
    for name in ("generator", "discriminator"):
        weights = torch.load(trained / f"{name}.pth", weights_only=True)
        assert all(torch.isfinite(value).all() for value in weights.values())
    model.Discriminator(4).load_state_dict(weights)
    story = json.loads((trained / "run.json").read_text())
    assert story["config"]["width"] == 4 and story["steps"] == 8 and story["images_trained"] == 128
    assert [entry["epoch"] for entry in story["history"]] == [1, 2]
    assert story["workers"][0]["device"] == "cpu" and story["data"]["images"] == 64
    quality = json.loads((trained / "quality.json").read_text())
    assert [entry["epoch"] for entry in quality["history"]] == [1, 2]
    assert 0 < story["seconds_of_quality"] <= story["seconds"]
    assert (trained / "report.html").read_text().count("data:image/png") == 6
    previews = [f"previews/epoch_000{epoch}.png" for epoch in (1, 2)]
    for name in ("grid.png", "losses.png", "speed.png", "quality.png", *previews):
        with Image.open(trained / name) as picture:
            picture.verify()
    assert not [path for path in trained.rglob(".*") if path.is_file()]  # no half-written file is left


def test_the_old_path_of_the_model_is_the_same_model(trained: Path) -> None:
    assert (trained / "worker_0" / "generator_0.pth").read_bytes() == (trained / "generator.pth").read_bytes()


def test_safetensors_holds_the_same_weights(trained: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    first, second = (artifacts.load_weights(trained / f"generator{end}") for end in (".pth", ".safetensors"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_resumed_run_ends_as_the_unbroken_one(trained: Path, tmp_path: Path) -> None:
    common = ("--sync-interval", "2", "--device", "cpu")
    assert run_train(tmp_path, "--epochs", "1", *common) == 0
    assert run_train(tmp_path, "--epochs", "2", "--resume", *common) == 0
    whole, parts = (json.loads((folder / "run.json").read_text()) for folder in (trained, tmp_path))
    assert whole["weights_digest"] == parts["weights_digest"]
    losses = [[(entry["d_loss"], entry["g_loss"]) for entry in one["history"]] for one in (whole, parts)]
    assert losses[0] == losses[1]
    assert (trained / "generator.pth").read_bytes() == (tmp_path / "generator.pth").read_bytes()
    assert (trained / "quality.json").read_text() == (tmp_path / "quality.json").read_text()


def test_resuming_needs_a_checkpoint_that_fits(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = [*TINY, "--save-dir", str(tmp_path), "--resume"]
    assert "nothing to resume" in refused(capsys, empty)
    here = [*TINY, "--save-dir", str(trained), "--resume"]
    assert "--width 4, not 8" in refused(capsys, [*here, "--width", "8"])
    assert "--dataset" in refused(capsys, [*here, "--dataset", "synthetic:80"])
    assert "stands at epoch 2" in refused(capsys, [*here, "--epochs", "2"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run_state.json").write_bytes(b"damaged")
    assert "run_state.json is damaged" in refused(capsys, empty)


def test_a_missing_data_set_ends_with_code_2_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(train, "_engine", lambda options: pytest.fail("the engine was started"))
    said = refused(
        capsys, ["--dataset", "cifar10", "--mode", "distributed", "--save-dir", str(tmp_path / "out")]
    )
    assert "cifar-10-python.tar.gz" in said and "mnist5k" in said and str(tmp_path / "data") in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--mode", "both"], "invalid choice"),
        (["--workers", "0"], "at least 1"),
        (["--label-smoothing", "1.5"], "below 1"),
        (["--sync-strategy", "median"], "invalid choice"),
        (["--batch-size", "1"], "BatchNorm"),
        (["--dataset", "mnist"], "on offer"),
        (["--dataset", "synthetic:few"], "synthetic:few"),
        (["--lr", "fast"], "--lr"),
        (["--lr", "-1"], "greater than 0"),
        (["--width", "0"], "at least 1"),
        (["--time-limit", "nan"], "zero or more"),
        (["--seed", str(2**70)], "2**62"),
        (["--quality-images", "1"], "two or more"),
        (["--dataset", "synthetic:-5"], "16 or more"),
        (["--save-dir", "/proc/nothing/here"], "cannot write into /proc/nothing/here"),
    ],
)
def test_a_wrong_command_line_ends_with_code_2(
    more: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, [*TINY, "--save-dir", str(tmp_path), *more])


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_drawn(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")
    argv = ["--model", str(trained / "generator.pth"), "--output", str(tmp_path / "taken")]
    assert generate.main(argv) == 2
    assert f"cannot write into {tmp_path / 'taken'}" in capsys.readouterr().err


def test_compiling_needs_a_compiler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_compiler", lambda: None)
    argv = [*TINY, "--save-dir", str(tmp_path), "--device", "cpu", "--compile"]
    assert "needs a C++ compiler" in refused(capsys, argv)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(train._compiler() is None, reason="there is no C++ compiler")
def test_compiled_networks_learn_the_same(tmp_path: Path) -> None:
    losses = []
    for more in ([], ["--compile"]):
        folder = tmp_path / f"compiled{len(more)}"
        assert run_train(folder, "--epochs", "1", "--device", "cpu", "--quality-images", "0", *more) == 0
        losses.append(json.loads((folder / "run.json").read_text())["history"][0]["d_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*TINY, "--save-dir", str(tmp_path), "--device", "cuda"]
    assert "no GPU" in refused(capsys, argv)
    artifacts.save_models(tmp_path, model.Generator(8, 4).state_dict(), {})
    assert generate.main(["--model", str(tmp_path / "generator.pth"), "--device", "cuda"]) == 2


def test_losses_that_are_no_numbers_end_the_run_with_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(tmp_path, "--lr", "1e30", "--epochs", "3") == 1
    assert "lower --lr" in capsys.readouterr().err
    assert not (tmp_path / "generator.pth").exists()


def test_quality_can_be_left_out(tmp_path: Path) -> None:
    assert run_train(tmp_path, "--epochs", "1", "--quality-images", "0") == 0
    assert not (tmp_path / "quality.json").exists() and (tmp_path / "report.html").exists()


def test_a_time_limit_ends_the_run_with_everything_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(tmp_path, "--epochs", "1000000", "--time-limit", "0.2") == 0
    assert "--resume" in capsys.readouterr().out
    assert steps_saved(tmp_path) == json.loads((tmp_path / "run.json").read_text())["steps"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_everything_and_leaves_with_130(tmp_path: Path, number: int) -> None:
    argv = [sys.executable, "-m", "ml.gan.train", *TINY, "--epochs", "1000000", "--save-dir", str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("training on")
        child.send_signal(number)
        out = child.communicate(timeout=60)[0]
    assert child.returncode == 130 and "--resume" in out
    assert steps_saved(tmp_path) > 0 and (tmp_path / "generator.pth").exists()


def test_all_strategies_agree_where_there_is_one_worker(tmp_path: Path) -> None:
    losses = []
    for strategy in STRATEGIES:
        assert run_train(tmp_path / strategy, "--epochs", "1", "--sync-strategy", strategy) == 0
        story = json.loads((tmp_path / strategy / "run.json").read_text())
        assert story["config"]["sync_strategy"] == strategy
        losses.append(story["history"][0]["d_loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)
    assert config.STRATEGIES == STRATEGIES


def test_a_run_that_was_killed_before_its_results_were_written_resumes_to_them(
    trained: Path, tmp_path: Path
) -> None:
    assert run_train(tmp_path, "--epochs", "1") == 0
    before = (tmp_path / "generator.pth").read_bytes()
    for name in ("generator.pth", "run.json"):
        (tmp_path / name).unlink()
    assert run_train(tmp_path, "--epochs", "1", "--resume") == 0
    assert (tmp_path / "generator.pth").read_bytes() == before


def draw(folder: Path, model_path: Path, *more: str) -> list[bytes]:
    assert generate.main(["--model", str(model_path), "--output", str(folder), *more]) == 0
    return [path.read_bytes() for path in sorted(folder.glob("image_*.png"))]


def test_images_repeat_by_seed_whatever_the_count(trained: Path, tmp_path: Path) -> None:
    path = trained / "worker_0" / "generator_0.pth"
    many = draw(tmp_path / "many", path, "--num-images", "37", "--seed", "9")
    few = draw(tmp_path / "few", path, "--num-images", "5", "--seed", "9")
    other = draw(tmp_path / "other", path, "--num-images", "5", "--seed", "10")
    assert len(many) == 37 and many[:5] == few and not set(few) & set(other)


def test_images_repeat_whatever_the_threads(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(generate, "usable_cores", lambda threads=threads: threads)
        found.append(draw(tmp_path / str(threads), trained / "generator.pth", "--num-images", "50"))
    assert found[0] == found[1]


def test_the_grid_of_a_run_shows_the_first_generated_images(trained: Path, tmp_path: Path) -> None:
    draw(tmp_path, trained / "generator.pth", "--num-images", "64", "--seed", "5")
    with Image.open(tmp_path / "grid.png") as drawn, Image.open(trained / "grid.png") as saved:
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(saved))


def test_a_model_that_is_missing_or_foreign_ends_with_code_2(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    for path, says in (
        (tmp_path / "absent.pth", "no such model"),
        (tmp_path / "text.pth", "text.pth"),
        (trained / "discriminator.pth", "not a generator's weights"),
    ):
        assert generate.main(["--model", str(path), "--output", str(tmp_path / "out")]) == 2
        assert says in capsys.readouterr().err
    for wrong in (["--num-images", "0"], ["--interpolate", "1"], ["--as", "grid", "--num-images", "5000"]):
        argv = ["--model", str(trained / "generator.pth"), "--output", str(tmp_path / "out")]
        assert ended([*wrong, *argv]) == 2
    assert not (tmp_path / "out").exists()


def ended(argv: list[str]) -> int:
    """The exit code of generate, whoever found the fault."""
    try:
        return generate.main(argv)
    except SystemExit as left:  # argparse's own way
        return int(left.code or 0)


def test_strips_lead_from_one_image_to_another(trained: Path, tmp_path: Path) -> None:
    path = trained / "generator.pth"
    strips = draw(tmp_path / "strips", path, "--num-images", "50", "--interpolate", "10", "--seed", "9")
    cut = draw(tmp_path / "cut", path, "--num-images", "23", "--interpolate", "10", "--seed", "9")
    alone = draw(tmp_path / "alone", path, "--num-images", "4", "--seed", "9")
    assert cut == strips[:23]
    assert [strips[at] for at in (0, 9, 10, 19)] == alone  # strips begin and end at independent images
    with Image.open(tmp_path / "strips" / "grid.png") as sheet:
        assert sheet.width == 2 * (10 * 34 + 2) and sheet.height == 2 * (5 * 34 + 2)


def test_a_grid_or_files_alone(trained: Path, tmp_path: Path) -> None:
    path = trained / "generator.pth"
    assert draw(tmp_path / "grid", path, "--num-images", "120", "--as", "grid") == []
    with Image.open(tmp_path / "grid" / "grid.png") as sheet:
        assert sheet.width == 2 * (11 * 34 + 2)
    assert len(draw(tmp_path / "files", path, "--num-images", "3", "--as", "files")) == 3
    assert not (tmp_path / "files" / "grid.png").exists()


def test_a_generator_or_a_folder_of_images_is_measured(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--dataset", "synthetic:64", "--num-images", "20"]
    assert measure.main([*common, "--model", str(trained / "generator.pth"), "--json"]) == 0
    by_model = json.loads(capsys.readouterr().out)
    draw(tmp_path, trained / "generator.pth", "--num-images", "20", "--as", "files")
    capsys.readouterr()
    assert measure.main([*common, "--images", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == by_model and by_model["verdict"]["images"] == 20
    assert measure.main([*common, "--images", str(tmp_path)]) == 0
    assert "Fréchet distance" in capsys.readouterr().out
    for wrong in (["--images", str(tmp_path / "none")], ["--model", "none"], ["--dataset", "cifar11"]):
        assert measure.main([*common, *wrong]) == 2
        assert "error:" in capsys.readouterr().err


def test_help_needs_neither_torch_nor_the_engine() -> None:
    for module in ("ml.gan.train", "ml.gan.generate", "ml.gan.measure", "ml.gan"):
        code = (
            "import runpy, sys; sys.modules['torch'] = sys.modules['miniray'] = None; "
            f"sys.argv = ['x', '--help']; runpy.run_module({module!r}, run_name='__main__')"
        )
        argv = [sys.executable, "-c", code]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_training_without_torch_says_how_to_get_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from ml.gan import train; "
        f"sys.exit(train.main({[*TINY, '--save-dir', str(tmp_path)]!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2 and "miniray[ml]" in done.stderr
