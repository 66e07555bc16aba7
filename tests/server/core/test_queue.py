"""Who is next: fairness, priority and patience, as orders of names."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from server.lanes import Lane
from server.queue import FairQueue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_one_client_with_equal_requests_is_served_in_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in "abcd":
        queue.push(item, "ann", 1)
    assert drained(queue) == ["a", "b", "c", "d"]


def test_clients_take_turns_however_many_requests_one_sends() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(6):
        queue.push(f"ann{number}", "ann", 1)
    for number in range(2):
        queue.push(f"bob{number}", "bob", 1)
    assert drained(queue)[:4] == ["ann0", "bob0", "ann1", "bob1"]


def test_clients_share_the_work_not_the_number_of_requests() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(3):
        queue.push(f"big{number}", "ann", 4)
    for number in range(12):
        queue.push(f"small{number}", "bob", 1)
    first = drained(queue)[:10]
    assert [name[:3] for name in first].count("big") == 2


def test_a_short_request_overtakes_a_long_one_of_the_same_client() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("long", "ann", 50)
    queue.push("short", "ann", 1)
    assert drained(queue) == ["short", "long"]


def test_one_that_is_taken_out_of_turn_pays_for_itself_and_takes_nothing_from_the_others() -> None:
    queue: FairQueue[str] = FairQueue()
    items = {client: [f"{client}{number}" for number in range(3)] for client in ("ann", "bob")}
    for client, own in items.items():
        for item in own:
            queue.push(item, client, 5)
    assert queue.pop(items["bob"][2]) == "bob2"
    assert drained(queue) == ["ann0", "ann1", "bob0", "ann2", "bob1"]


def test_a_long_request_is_not_starved_by_short_ones_of_ever_new_clients() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("long", "ann", 10)
    served = []
    for number in range(100):
        queue.push("short", f"client {number}", 1)
        served.append(queue.pop())
    assert served.index("long") <= 10


def test_a_long_request_is_not_starved_by_short_ones_of_its_own_client() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("long", "ann", 10)
    served = []
    for _ in range(100):
        queue.push("short", "ann", 1)
        served.append(queue.pop())
    assert served.index("long") <= 10


def test_being_absent_saves_up_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(50):
        queue.push("early", "ann", 1)
        queue.pop()
    for _ in range(4):
        queue.push("ann", "ann", 1)
        queue.push("bob", "bob", 1)
    assert sorted(drained(queue)[:4]) == ["ann", "ann", "bob", "bob"]


def test_a_discarded_request_is_gone_and_an_unknown_one_does_no_harm() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a", "ann", 1)
    queue.push("b", "ann", 1)
    queue.discard("a")
    queue.discard("never pushed")
    assert drained(queue) == ["b"]


pushes = st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0.01, 100)), max_size=40)


@given(pushes)
def test_what_is_foretold_is_what_happens(given: list[tuple[str, float]]) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, (client, cost) in enumerate(given):
        queue.push(number, client, cost)
    foretold = queue.order()
    assert [queue.pop() for _ in given] == foretold
    assert sorted(foretold) == list(range(len(given)))


@dataclass(eq=False)
class Waiting:
    """What a lane knows of a job that waits."""

    cost: float
    overtaken: float = 0.0


def test_small_jobs_overtake_a_large_one_by_its_own_work_and_no_more() -> None:
    """The model has never room for the large one while small ones keep coming."""
    lane = Lane("nano")
    large = Waiting(10)
    lane.queue.push(large, "ann", large.cost)  # type: ignore[arg-type]
    passed = 0
    for _ in range(100):
        small = Waiting(1)
        lane.queue.push(small, "bob", small.cost)  # type: ignore[arg-type]
        smaller = [job for job in lane.candidates() if job is not large]
        if lane.queue.order()[0] is large:
            if not smaller:
                break
            passed += 1
        lane.take(smaller[0])
    assert passed == 10 and lane.candidates() == [large]
