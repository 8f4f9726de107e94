"""The queue: every request leaves once, the oldest first, documents are paid once, and the budget is kept."""

from collections.abc import Hashable

from hypothesis import given
from hypothesis import strategies as st
from mtcore_serve.batching import Queue, Waiting

BUDGET = 20
DOCUMENTS = {"": 0, "a": 5, "b": 9}
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 30)),
        st.tuples(st.just("encode"), st.integers(0, 30)),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("take"), st.just(0)),
    ),
    max_size=60,
)


def waiting(number: int, *, key: Hashable = None, cost: int = 4, document: str = "", deadline: float = 1e9) -> Waiting[int]:
    """A request that is ready to be taken."""
    return Waiting(number, key if key is not None else number, deadline, cost, document, DOCUMENTS[document], is_ready=True)


def keyed(key: int) -> tuple[int, str, int]:
    """Cost, document and its cost: what asks the same costs the same."""
    document = list(DOCUMENTS)[key % 3]
    return DOCUMENTS[document] + 1 + key % 7 * 4, document, DOCUMENTS[document]


def price(waits: list[Waiting[int]]) -> int:
    """What requests cost together, counted anew."""
    alike = {one.key: one for one in waits}.values()
    read = {one.document: one.document_cost for one in alike if one.is_ready}
    return sum(one.cost - (one.document_cost if one.is_ready else 0) for one in alike) + sum(read.values())


@given(STEPS)
def test_whatever_happens_every_request_leaves_once_the_oldest_first_and_the_budget_is_kept(steps):
    queue: Queue[int] = Queue()
    inside: list[Waiting[int]] = []
    left: list[Waiting[int]] = []
    for now, (step, number) in enumerate(steps):
        key = number % 11
        if step == "add":
            twin = queue.alike(key)
            one = Waiting(now, key, now + 3.0 + number, twin.cost, twin.document, twin.document_cost, twin.is_ready) if twin else None
            one = one or Waiting(now, key, now + 3.0 + number, 1 + number)
            queue.add(one)
            inside.append(one)
        elif step == "encode":
            queue.encoded(key, *keyed(key))
        elif step == "remove" and inside:
            one = inside.pop(number % len(inside))
            assert queue.remove(one)
            assert not queue.remove(one)
            left.append(one)
        elif step == "take":
            batch = queue.take(float(now), BUDGET)
            chosen = [one for alike in batch.chosen for one in alike]
            oldest = next((one for one in inside if one.is_ready and one.deadline > now), None)
            assert (oldest in chosen) if oldest else not chosen
            assert all(one.is_ready and one.deadline > now for one in chosen)
            assert all(len({one.key for one in alike}) == 1 for alike in batch.chosen)
            assert batch.tokens == price(chosen)
            assert batch.tokens <= BUDGET or len(batch.chosen) == 1
            assert {*batch.late} == {one for one in inside if one.deadline <= now}
            left += [*chosen, *batch.late]
            inside = [one for one in inside if one not in {*chosen, *batch.late}]
        assert list(queue) == inside
        assert queue.tokens == price(inside)
    assert len(left) == len({*left})


def test_what_shares_a_document_with_the_oldest_goes_before_what_is_older():
    queue: Queue[int] = Queue()
    for number, document in enumerate(["a", "b", "a", "a"]):
        queue.add(waiting(number, cost=DOCUMENTS[document] + 5, document=document))
    batch = queue.take(0.0, BUDGET)
    assert [one.item for alike in batch.chosen for one in alike] == [0, 2, 3]
    assert (batch.tokens, queue.tokens) == (5 + 3 * 5, 14)


def test_what_asks_the_same_is_paid_once_and_leaves_together():
    queue: Queue[int] = Queue()
    for number in range(3):
        queue.add(waiting(number, key="same", cost=15))
    assert queue.tokens == 15
    assert [[one.item for one in alike] for alike in queue.take(0.0, BUDGET).chosen] == [[0, 1, 2]]


def test_a_request_beyond_the_budget_goes_alone_when_it_is_the_oldest():
    queue: Queue[int] = Queue()
    queue.add(waiting(0, cost=3))
    queue.add(waiting(1, cost=100))
    queue.add(waiting(2, cost=3))
    taken = [[one.item for alike in queue.take(0.0, BUDGET).chosen for one in alike] for _ in range(2)]
    assert taken == [[0, 2], [1]]
