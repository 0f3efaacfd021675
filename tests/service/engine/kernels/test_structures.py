"""What Python writes is what the kernels read: a mirror that differs anywhere is refused before a step runs."""

import ctypes
from collections.abc import Callable

import pytest

from service.engine.kernels import library, structures
from service.engine.kernels.library import LEVELS, built_levels, load_kernels
from service.engine.kernels.structures import MIRRORED, Draw, GPTStep, Linear, describe_layout
from service.errors import SettingError

pytestmark = pytest.mark.skipif(not built_levels(), reason="no native kernels: installed without a C++ compiler")


def changed(structure: type[ctypes.Structure], fields: list[tuple[str, type]]) -> str:
    """The layout of a mirror in which `structure` has other fields."""
    wrong = type(structure.__name__, (ctypes.Structure,), {"_fields_": fields})
    return describe_layout(tuple(wrong if each is structure else each for each in MIRRORED))


def swapped(structure: type[ctypes.Structure], first: str, second: str) -> str:
    names = [name for name, _ in structure._fields_]
    fields = list(structure._fields_)
    at, to = names.index(first), names.index(second)
    fields[at], fields[to] = fields[to], fields[at]
    return changed(structure, fields)


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_has_the_structures_that_python_writes(level: str) -> None:
    kernels = library._open(level)
    if kernels is None:
        pytest.skip(f"no {level} kernels were built")
    kernels.minigpt_layout.restype = ctypes.c_char_p
    assert kernels.minigpt_layout().decode() == describe_layout()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: swapped(Linear, "K", "N"), "Linear.N"),
        (lambda: swapped(GPTStep, "scores", "weights"), "GPTStep.weights"),
        (lambda: swapped(Draw, "temperature", "top_p"), "Draw.top_p"),
        (lambda: changed(Linear, list(Linear._fields_[:-1])), "Linear"),
        (lambda: changed(Linear, [*Linear._fields_, ("cap", ctypes.c_float)]), "Linear"),
        (lambda: changed(Draw, [("seed", ctypes.c_double), *Draw._fields_[1:]]), "Draw.seed"),
        (lambda: describe_layout().replace("LSTM 1", "LSTM 2"), "LSTM"),
        (lambda: describe_layout().replace("PAGE 16", "PAGE 32"), "PAGE"),
    ],
    ids=["swapped", "pointers swapped", "doubles swapped", "one less", "one more", "another type", "cell", "page"],
)
def test_a_mirror_that_differs_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[], str], named: str
) -> None:
    layout = wrong()
    monkeypatch.setattr(library, "describe_layout", lambda: layout)
    with pytest.raises(SettingError, match=rf"kernels do not read what this minigpt writes \({named}") as refused:
        load_kernels.__wrapped__(built_levels()[0])
    assert "pip install --no-deps -e ." in str(refused.value)


def test_every_structure_is_mirrored() -> None:
    defined = {
        value for value in vars(structures).values() if isinstance(value, type) and issubclass(value, ctypes.Structure)
    }
    assert set(MIRRORED) == defined
