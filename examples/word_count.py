"""Map and reduce: count the words of many documents, each word at one reducer."""

import zlib
from collections import Counter

import miniray as ray

VERSES = [
    "the boy stood on the burning deck whence all but he had fled",
    "the flame that lit the battle's wreck shone round him o'er the dead",
    "yet beautiful and bright he stood as born to rule the storm",
    "a creature of heroic blood a proud though childlike form",
]
REDUCERS = 3


@ray.remote(num_returns=REDUCERS)
def count_words(text: str) -> list[Counter]:
    """One counter per reducer. crc32, not hash(): hash() of a string differs between processes."""
    parts = [Counter() for _ in range(REDUCERS)]
    for word in text.split():
        parts[zlib.crc32(word.encode()) % REDUCERS][word] += 1
    return parts


@ray.remote
def merge(*parts: Counter) -> Counter:
    return sum(parts, Counter())


def main() -> None:
    ray.init()
    documents = VERSES * 25
    mapped = [count_words.remote(text) for text in documents]
    # Reducer r takes part r of every mapper; the counters go from worker to worker.
    reduced = [merge.remote(*[parts[r] for parts in mapped]) for r in range(REDUCERS)]
    total = sum(ray.get(reduced), Counter())
    for word, number in total.most_common(5):
        print(f"{number:5d}  {word}")
    assert total == Counter(" ".join(documents).split())
    print(f"{total.total()} words of {len(documents)} documents, {len(total)} different ones")


if __name__ == "__main__":
    main()
