"""What may be claimed is never more than the engine takes, whatever is still on its way."""

from service.worker.capacity import ClaimCapacity
from tests.fleet.waiting import PATIENCE_S


def test_what_is_on_its_way_takes_room_until_the_engine_has_it():
    room = ClaimCapacity()
    room.set(5)
    assert room.wait() == 5
    room.depart(3)
    assert room.wait() == 2
    room.set(5)  # a step later: the engine has not got them yet
    assert room.wait() == 2
    room.set(2, num_arrived=3)
    assert room.wait() == 2


def test_it_waits_for_room_and_ends_when_closed(beside):
    room = ClaimCapacity()
    with room:
        waiting = beside(room.wait)
        room.set(1)
        assert waiting.result(PATIENCE_S) == 1
        room.depart(1)
        waiting = beside(room.wait)
    assert waiting.result(PATIENCE_S) == 0
    assert room.wait() == 0
