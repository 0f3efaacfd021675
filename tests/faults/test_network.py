"""A network between the parts and Redis that is slow, narrow, or not there."""

import pytest

from tests.fleet.waiting import wait_until

PARTS = ("gateways", "workers")


def broken(members) -> int:
    return sum(member.network.num_broken for member in members)


@pytest.mark.parametrize("part", PARTS)
def test_cut_and_healed(scene, fleet, part):
    members = getattr(fleet, part)
    before = broken(members)
    with scene() as running:
        running.wait_for_tokens(20)
        for member in members:
            member.network.cut()
        assert running.num_unfinished() > 0
        wait_until(lambda: broken(members) >= before + 2 * len(members), "they have tried again")
        for member in members:
            member.network.heal()
    assert all(member.is_running for member in members)


@pytest.mark.parametrize("part", PARTS)
def test_reset_again_and_again(scene, fleet, part):
    members = getattr(fleet, part)
    before = broken(members)
    with scene() as running:
        for count in (20, 200, 400):
            running.wait_for_tokens(count)
            for member in members:
                member.network.reset()
    assert broken(members) > before


@pytest.mark.parametrize("part", PARTS)
def test_half_closed(scene, fleet, part):
    members = getattr(fleet, part)
    before = broken(members)
    with scene() as running:
        running.wait_for_tokens(20)
        for member in members:
            member.network.half_close()
    assert broken(members) > before


@pytest.mark.parametrize("part", PARTS)
def test_a_black_hole_for_a_while(scene, fleet, part):
    members = getattr(fleet, part)
    before = sum(member.network.num_swallowed for member in members)
    with scene() as running:
        running.wait_for_tokens(20)
        for member in members:
            member.network.swallow()
        wait_until(
            lambda: sum(member.network.num_swallowed for member in members) >= before + 3, "something has vanished"
        )
        for member in members:
            member.network.heal()


@pytest.mark.parametrize("part", PARTS)
def test_one_megabit_a_second(scene, fleet, part):
    for member in getattr(fleet, part):
        member.network.bytes_per_s = 125_000
    with scene(num_tokens=300) as running:
        running.wait_for_ends()


@pytest.mark.parametrize("part", PARTS)
def test_a_fifth_of_a_second_away(scene, fleet, part):
    for member in getattr(fleet, part):
        member.network.latency_s = 0.2
    with scene(num_tokens=300) as running:
        running.wait_for_ends()
