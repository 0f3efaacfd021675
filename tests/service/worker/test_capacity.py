"""What may be claimed is never more than the engine takes, whatever is still on its way."""

import threading

from service.worker.capacity import ClaimCapacity


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


def test_it_waits_for_room_and_ends_when_closed():
    room, seen = ClaimCapacity(), []
    thread = threading.Thread(target=lambda: seen.extend([room.wait(), room.wait()]))
    with room:
        thread.start()
        room.set(1)
        while not seen:
            room.set(1)
        room.depart(1)
    thread.join(20)
    assert seen[0] == 1
    assert room.wait() == 0
