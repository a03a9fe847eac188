"""One page about a run, report.html: everything is inside it, so it opens anywhere, also without a network.

Pictures are embedded, the style is inline, there is no script. All text that comes from outside is escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml.gan import artifacts, plots

FILE = "report.html"
_PREVIEWS_AT_MOST = 6
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --dim: #66707a; --paper: #fff; --card: #f5f6f8;
        --line: #dde1e6; --bar: #1f77b4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --dim: #9aa4ae; --paper: #15181c;
        --card: #1e2328; --line: #343b43; --bar: #58a6dd; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.dim, td.dim, figcaption { color: var(--dim); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; }
.cards div { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.cards b { display: block; font-size: 1.35rem; }
img { max-width: 100%; height: auto; border-radius: .3rem; background: #fff; }
img.pixels { image-rendering: pixelated; }
img.chart { min-width: 36rem; }
@media (prefers-color-scheme: dark) { img.chart { filter: invert(.91) hue-rotate(180deg); } }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .6rem; }
figure { margin: 0; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .25rem .6rem .25rem 0;
       border-bottom: 1px solid var(--line); vertical-align: top; } .scroll { overflow-x: auto; }
.bars { display: flex; gap: .6rem; align-items: flex-end; height: 9rem; }
.bars div { flex: 1; display: flex; flex-direction: column; justify-content: flex-end; height: 100%;
       text-align: center; font-size: .8rem; color: var(--dim); }
.bars i { display: block; background: var(--bar); border-radius: .2rem .2rem 0 0; }
pre { background: var(--card); padding: .8rem; border-radius: .5rem; overflow-x: auto; }
"""


def write(
    folder: Path,
    story: dict[str, Any],
    quality: dict[str, Any] | None,
    pictures: Sequence[tuple[str, Path]],
) -> Path:
    """Write report.html into `folder` from run.json's content, quality.json's and pictures with titles."""
    page = render(story, quality, pictures, sorted((folder / "previews").glob("*.png")))
    return artifacts.save_text(folder / FILE, page)


def render(
    story: dict[str, Any],
    quality: dict[str, Any] | None,
    pictures: Sequence[tuple[str, Path]],
    previews: Sequence[Path] = (),
) -> str:
    """The page as text."""
    config = story["config"]
    history = quality["history"] if quality else []
    title = f"GAN on {config['dataset']}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="dim">{_text(config["job_id"])}: {_text(_how(config))}</p>',
        _cards(story, history[-1] if history else None, _best(quality["basis"]) if quality else None),
        *(_figure(name, path) for name, path in pictures),
    ]
    if history and "class_shares" in history[-1]:
        parts.append(_class_bars(quality["basis"], history[-1]) if quality else "")
    if previews:
        parts.append(_strip(previews))
    if history and quality:
        parts.append(_quality_table(quality["basis"], history))
    parts += [_table("Workers", story["workers"]), _settings(story), _next(config)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(part for part in parts if part)
        + "</body></html>\n"
    )


def quality_charts(basis: dict[str, Any], history: Sequence[dict[str, Any]]) -> list[Any]:
    """Charts of the verdicts over epochs; Pillow's own font has no accents."""
    if not history:
        return []
    epochs = [entry["epoch"] for entry in history]

    def line(name: str, key: str) -> plots.Series:
        return (name, epochs, [entry[key] for entry in history])

    distances = [line("Frechet distance", "frechet")]
    if "fid" in history[0]:
        distances.append(line("FID", "fid"))
    if (best := _best(basis)) is not None:
        distances.append(("other real images", [0.0, epochs[-1]], [best, best]))
    shares = [line(name, name) for name in ("precision", "recall", "density", "coverage")]
    return [
        plots.chart("Frechet distance (less is better)", "epoch", distances, logarithmic=True),
        plots.chart("Among real images (more is better)", "epoch", shares),
    ]


def _best(basis: dict[str, Any]) -> float | None:
    """The Fréchet distance of other real images, where it was measured: the least to be had."""
    found = basis.get("real_against_real", {}).get("frechet")
    return None if found is None else float(found)


def _how(config: dict[str, Any]) -> str:
    many = f"{config['workers']} workers" if config["workers"] > 1 else "one worker"
    return f"{many}, batch {config['batch_size']} each, width {config['width']}, seed {config['seed']}"


def _cards(story: dict[str, Any], verdict: dict[str, Any] | None, best: float | None) -> str:
    cards = [
        (f"{story['images_per_s']:,.0f}", "images/s"),
        (f"{story['steps']:,}", "steps"),
        (_duration(story["seconds_with_earlier_parts"]), "of training"),
    ]
    if verdict:
        beside = "" if best is None else f"; real images: {best:.1f}"
        cards.append((f"{verdict['frechet']:.1f}", f"Fréchet distance{beside}"))
        if "fid" in verdict:
            cards.append((f"{verdict['fid']:.1f}", "FID"))
        cards.append((f"{verdict['precision']:.0%} / {verdict['recall']:.0%}", "precision / recall"))
        if "classes" in verdict:
            cards.append((f"{verdict['classes_covered']} of {verdict['classes']}", "classes drawn"))
    inner = "".join(f"<div><b>{_text(figure)}</b>{_text(what)}</div>" for figure, what in cards)
    return f'<div class="cards">{inner}</div>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


_CAPTIONS = {
    "grid.png": "64 images of the saved generator, drawn one after the other and not chosen.",
    "losses.png": "Faint: each round. Strong: a moving average. D(…): how sure the discriminator is that "
    "real and generated images are real, from 0 to 1; at one half it cannot tell them apart.",
    "speed.png": "Of all workers together, in each round, with reports and checkpoints.",
    "quality.png": "Of the generator as it would be saved at that epoch. What the figures mean is below the "
    "table; the distance of other real images is the least to be had.",
}


def _figure(title: str, path: Path) -> str:
    kind = "pixels" if path.name == "grid.png" else "chart"
    picture = f'<div class="scroll"><img class="{kind}" alt={_quoted(title)} src={_embedded(path)}></div>'
    caption = _CAPTIONS.get(path.name, "")
    return f'<h2>{_text(title)}</h2>\n{picture}\n<p class="dim">{_text(caption)}</p>'


def _strip(previews: Sequence[Path]) -> str:
    """First, last, and some between, evenly."""
    last = len(previews) - 1
    count = min(len(previews), _PREVIEWS_AT_MOST)
    chosen = [previews[round(last * at / max(1, count - 1))] for at in range(count)]
    figures = "".join(
        f'<figure><img class="pixels" alt={_quoted(path.stem)} src={_embedded(path)}>'
        f"<figcaption>{_text(path.stem.replace('_', ' '))}</figcaption></figure>"
        for path in chosen
    )
    return f'<h2>On the way</h2>\n<div class="strip">{figures}</div>'


def _class_bars(basis: dict[str, Any], verdict: dict[str, Any]) -> str:
    data, drawn = basis["class_shares_of_the_data"], verdict["class_shares"]
    most = max([*data, *drawn, 1e-9])

    def bar(at: int) -> str:
        height = round(85 * drawn[at] / most)
        return (
            f'<div title="class {at}: drawn {drawn[at]:.1%}, data {data[at]:.1%}">'
            f'<span>{drawn[at]:.0%}</span><i style="height:{height}%"></i>'
            f"<b>{at}</b><small>{data[at]:.0%}</small></div>"
        )

    bars = "".join(bar(at) for at in range(len(drawn)))
    note = "Share of each class among generated images, by the feature network; below it the data's share."
    return f'<h2>Classes</h2>\n<div class="bars">{bars}</div><p class="dim">{note}</p>'


def _quality_table(basis: dict[str, Any], history: Sequence[dict[str, Any]]) -> str:
    keys = [key for key in history[-1] if key not in ("class_shares", "classes", "images")]
    rows = [[_plain(entry.get(key, "")) for key in keys] for entry in history]
    if "real_against_real" in basis:
        best = basis["real_against_real"]
        rows.append(["real images", "", *(_plain(best.get(key, "")) for key in keys[2:])])
    note = (
        f"{basis['features']} of a network trained on this data set "
        f"({basis['accuracy_of_the_feature_network']:.1%} right on held-out images), "
        f"{history[-1]['images']:,} generated against {basis['real_images']:,} real images. "
        "Precision and density: do generated images lie where real ones are; recall and coverage: have real "
        "images generated ones beside them. "
        "Figures compare with others of the same data set and number of images, not with published FIDs. "
        "The last row holds other real images against them: the best to be had."
    )
    return f'<h2>Quality</h2>\n{_rows(keys, rows)}<p class="dim">{_text(note)}</p>'


def _settings(story: dict[str, Any]) -> str:
    settings = story["config"] | story["versions"] | {"data": story["data"]["source"]}
    return "<h2>Settings</h2>\n" + _rows((), [[key, _plain(value)] for key, value in settings.items()])


def _table(title: str, entries: Sequence[dict[str, Any]]) -> str:
    keys = list(entries[0]) if entries else []
    return f"<h2>{_text(title)}</h2>\n" + _rows(keys, [[_plain(one[key]) for key in keys] for one in entries])


def _rows(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(name.replace('_', ' '))}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>{f"<tr>{top}</tr>" if top else ""}{body}</table></div>'


def _next(config: dict[str, Any]) -> str:
    commands = (
        "python -m ml.gan.generate --model generator.pth --num-images 100\n"
        f"python -m ml.gan.train --resume --epochs {2 * config['epochs']} …   (the settings above)"
    )
    return f"<h2>Next</h2>\n<pre>{_text(commands)}</pre>"


def _plain(value: Any) -> str:
    if value is None:
        return "automatic"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: str) -> str:
    return html.escape(value)


def _quoted(value: str) -> str:
    return f'"{html.escape(value, quote=True)}"'


def _embedded(path: Path) -> str:
    return f'"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"'
