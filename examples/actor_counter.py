"""A class becomes an actor: a worker with state, whose handle can be passed to tasks."""

import miniray as ray


@ray.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    def fail(self) -> None:
        raise ValueError(f"asked to fail at {self.value}")


@ray.remote
def add_many(counter: "ray.ActorHandle", times: int) -> None:
    ray.get([counter.add.remote() for _ in range(times)])


def main() -> None:
    ray.init()
    counter = Counter.options(name="counter").remote(start=100)

    # Calls from one caller run in the order in which they were made.
    assert ray.get([counter.add.remote() for _ in range(5)]) == [101, 102, 103, 104, 105]

    # Any task that holds the handle, or looks the name up, talks to the same actor.
    ray.get([add_many.remote(counter, 10) for _ in range(4)])
    assert ray.get(ray.get_actor("counter").add.remote(0)) == 145

    # An exception is raised where its result is taken, and the actor lives on.
    try:
        ray.get(counter.fail.remote())
    except ValueError as error:
        print(f"raised in the actor, caught here: {type(error).__name__}")
    print(f"the counter stands at {ray.get(counter.add.remote(0))}")


if __name__ == "__main__":
    main()
