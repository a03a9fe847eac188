"""A graph of tasks: pass references as arguments, and each task starts when its inputs are there.

    load ── clean ─┐      ┌─ count ───┐
                   ├ join ┤           ├ report
    load ── clean ─┘      └─ longest ─┘
"""

import miniray as ray

SOURCES = {
    "north": "  frost  wind  frost  snow  ",
    "south": " sun rain   thunderstorm sun ",
}


@ray.remote
def load(name: str) -> str:
    return SOURCES[name]


@ray.remote
def clean(text: str) -> list[str]:
    return text.split()


@ray.remote
def join(*parts: list[str]) -> list[str]:
    return [word for part in parts for word in part]


@ray.remote
def count(words: list[str]) -> int:
    return len(words)


@ray.remote
def longest(words: list[str]) -> str:
    return max(words, key=len)


@ray.remote
def report(number: int, word: str) -> str:
    return f"{number} words, the longest is {word!r}"


def main() -> None:
    ray.init()
    # Nothing here waits: the whole graph is submitted before its first task has run.
    words = join.remote(*[clean.remote(load.remote(name)) for name in SOURCES])
    summary = ray.get(report.remote(count.remote(words), longest.remote(words)))
    print(summary)
    assert summary == "8 words, the longest is 'thunderstorm'"


if __name__ == "__main__":
    main()
