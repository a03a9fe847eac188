"""The figures of quality against cases whose answer is known, and the judge, its record and the report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")

from ml.gan import features, plots, readers, report, scores  # noqa: E402
from ml.gan.judge import Judge  # noqa: E402
from ml.gan.quality import ClassShares, Manifold, Moments, Neighbourhood, frechet  # noqa: E402

RANDOM = np.random.default_rng(3)


def test_the_distance_of_two_gaussians_is_the_closed_form() -> None:
    one = Moments(np.zeros(2), np.diag([1.0, 4.0]))
    other = Moments(np.array([3.0, 4.0]), np.diag([9.0, 1.0]))
    # |m|² + Σ (σ1 - σ2)² for covariances that commute
    assert frechet(one, other) == pytest.approx(25 + (1 - 3) ** 2 + (2 - 1) ** 2)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_the_distance_agrees_with_the_root_of_the_product() -> None:
    first, second = (RANDOM.normal(size=(200, 5)) @ RANDOM.normal(size=(5, 5)) for _ in range(2))
    one, other = Moments.of(first), Moments.of(second)
    eigenvalues = np.linalg.eigvals(one.covariance @ other.covariance)
    expected = ((one.mean - other.mean) ** 2).sum() + np.trace(one.covariance + other.covariance)
    assert frechet(one, other) == pytest.approx(expected - 2 * np.sqrt(eigenvalues).real.sum())
    assert frechet(one, other) == pytest.approx(frechet(other, one))


def test_the_distance_exists_where_covariances_have_no_full_rank() -> None:
    few = RANDOM.normal(size=(4, 20))
    assert frechet(Moments.of(few), Moments.of(few)) == pytest.approx(0, abs=1e-8)
    assert frechet(Moments.of(few), Moments.of(few + 1)) == pytest.approx(20)


def test_moments_need_two_vectors() -> None:
    with pytest.raises(ValueError, match="at least two"):
        Moments.of(np.zeros((1, 3)))


def neighbourhood(real: Any, drawn: Any) -> Neighbourhood:
    return Neighbourhood.of(Manifold.of(real), Manifold.of(drawn))


def test_a_generator_of_half_the_data_is_precise_and_forgets_half() -> None:
    left, right = RANDOM.normal(size=(200, 2)), RANDOM.normal(size=(200, 2)) + 100
    found = neighbourhood(np.concatenate([left, right]), left + 1e-6)
    assert found.precision == 1 and found.recall == 0.5 and found.coverage == 0.5
    assert found.density > 0.9


def test_a_generator_of_more_than_the_data_is_imprecise() -> None:
    left, right = RANDOM.normal(size=(200, 2)), RANDOM.normal(size=(200, 2)) + 100
    found = neighbourhood(left, np.concatenate([left + 1e-6, right]))
    assert found.precision == 0.5 and found.recall == 1 and found.coverage == 1


def test_one_stray_real_image_does_not_make_noise_dense() -> None:
    stray = np.array([[50.0, 0.0]])
    real = np.concatenate([RANDOM.normal(size=(200, 2)) * 0.1, stray])
    found = neighbourhood(real, stray + RANDOM.normal(size=(100, 2)))
    assert found.precision == 1  # its weakness
    assert found.density < 0.4 and found.coverage < 0.01


def test_classes_that_a_generator_forgets_are_counted() -> None:
    data = np.repeat(np.arange(4), 25)
    shares = ClassShares.of(np.array([0] * 98 + [1] * 1 + [2] * 1), data, 5)
    assert shares.classes == 4 and shares.covered == 1
    assert shares.distance == pytest.approx(0.73)
    assert ClassShares.of(data, data, 5).covered == 4 and ClassShares.of(data, data, 5).distance == 0


@pytest.fixture(scope="module")
def shapes() -> readers.Read:
    return readers.synthetic(600, seed=1)


@pytest.fixture(scope="module")
def judge(shapes: readers.Read) -> Judge:
    return Judge(shapes.images, shapes.labels, 200)


def test_real_images_please_the_judge_and_noise_does_not(judge: Judge, shapes: readers.Read) -> None:
    real = judge.verdict(shapes.images[:200]).to_json()
    noise = judge.verdict(RANDOM.integers(0, 256, (200, 3, 32, 32)).astype(np.uint8)).to_json()
    assert real["frechet"] < noise["frechet"] / 4
    assert real["coverage"] > noise["coverage"] + 0.4
    assert real["classes"] == 10 == real["classes_covered"] and noise["classes_covered"] < 10
    assert "fid" not in real
    json.dumps([real, judge.to_json()])


def test_the_feature_network_is_a_function_of_the_data_alone(judge: Judge, shapes: readers.Read) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(RANDOM.integers(1000))
    again = Judge(shapes.images, shapes.labels, 200)
    assert torch.get_num_threads() == threads
    assert again.verdict(shapes.images[:50]) == judge.verdict(shapes.images[:50])


def test_a_data_set_without_labels_is_judged_by_quarter_turns(shapes: readers.Read) -> None:
    blind = Judge(shapes.images, None, 100)
    found = blind.verdict(shapes.images[100:200]).to_json()
    assert "classes" not in found and blind.extractor.name == "quarter-turn features"
    assert found["frechet"] < blind.verdict(255 - 2 * (shapes.images[:100] // 2)).to_json()["frechet"]


def test_inception_is_used_where_its_weights_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes: readers.Read
) -> None:
    from ml.gan.vision import models, torchvision

    if torchvision() is None:
        pytest.skip("torchvision does not import here")
    assert features.inception_weights() is None or features.inception_weights().is_file()  # type: ignore[union-attr]
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert features.inception_weights() is None
    (tmp_path / "checkpoints").mkdir()
    network = models().inception_v3(weights=None, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "checkpoints" / "inception_v3_google-0cc3c7bd.pth")
    path = features.inception_weights()
    assert path is not None
    assert features.Inception(path).look(shapes.images[:2]).shape == (2, 2048)


class Kind:
    """A judge whose verdict is the number of images."""

    def to_json(self) -> dict[str, Any]:
        return {"features": "none"}

    def verdict(self, drawn: Any) -> Any:
        class Verdict:
            def to_json(self) -> dict[str, Any]:
                return {"frechet": float(len(drawn)), "precision": 0.5, "recall": 0.25}

        return Verdict()


def test_scores_go_on_after_the_step_that_is_resumed(tmp_path: Path) -> None:
    first = scores.Scores(tmp_path, Kind())
    assert first.last_step == -1
    for step in (10, 20, 30):
        first.add(step / 10, step, np.zeros((step, 3, 32, 32), dtype=np.uint8))
    said: list[str] = []
    resumed = scores.Scores(tmp_path, Kind(), 20, said.append)
    assert [entry["frechet"] for entry in resumed.history] == [10, 20]
    resumed.add(2.5, 25, np.zeros((25, 3, 32, 32), dtype=np.uint8))
    assert said == ["quality after epoch 2.5: Fréchet distance 25.0, precision 0.50, recall 0.25"]
    assert [entry["step"] for entry in json.loads((tmp_path / scores.FILE).read_text())["history"]] == [
        10,
        20,
        25,
    ]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"history": [1]}', '{"history": 5}'])
def test_damaged_scores_begin_anew(tmp_path: Path, damage: str) -> None:
    (tmp_path / scores.FILE).write_text(damage)
    assert scores.Scores(tmp_path, Kind(), 20).history == []


class Page(HTMLParser):
    """What a page refers to and runs."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_page_that_needs_nothing_else(
    tmp_path: Path, judge: Judge, shapes: readers.Read
) -> None:
    record = scores.Scores(tmp_path, judge)
    for epoch in (1, 2):
        record.add(epoch, 10 * epoch, shapes.images[:100])
    picture = tmp_path / "grid.png"
    plots.grid(shapes.images[:4]).save(picture)
    evil = "<script>alert(1)</script>"
    story = {
        "config": {
            "job_id": evil, "dataset": "folder:<b>", "workers": 2, "batch_size": 8, "width": 4, "seed": 0,
            "epochs": 2,
        },
        "workers": [{"rank": 0, "host": evil}],
        "versions": {"torch": "1"},
        "data": {"source": evil},
        "images_per_s": 12.5,
        "steps": 20,
        "seconds_with_earlier_parts": 75.0,
    }  # fmt: skip
    text = report.render(story, record.to_json(), [("Images", picture)], [picture] * 9)
    page = Page()
    page.feed(text)
    assert page.open == [] and "script" not in page.tags and "link" not in page.tags
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(page.sources) == 1 + 6
    assert "<b>" not in text.split("</h1>")[0] and "10 of 10" in text and "1:15" in text
    assert report.render(story, None, [], ())  # a run that measured nothing


def test_verdicts_keep_to_their_share_of_the_time() -> None:
    budget = scores.Budget(0.1)
    assert budget.allows(0.0)  # the first one says what they take
    budget.spend(2.0)
    assert not budget.allows(39.9) and budget.allows(40.0)
    budget.spend(1.0)
    assert budget.spent_s == 3.0 and not budget.allows(39.9) and budget.allows(40.0)
    every = scores.Budget()
    every.spend(5.0)
    assert every.allows(0.0)
