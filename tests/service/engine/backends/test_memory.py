"""How much memory an engine may count on."""

import sys

import pytest

from service.engine.backends.memory import free_in_container


@pytest.mark.parametrize(("limit", "free"), [("1000", 600), ("max", sys.maxsize)])
def test_a_container_has_what_its_limit_leaves(tmp_path, limit, free):
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert free_in_container(tmp_path) == free


def test_outside_a_container_nothing_but_the_machine_limits(tmp_path):
    assert free_in_container(tmp_path) == sys.maxsize
