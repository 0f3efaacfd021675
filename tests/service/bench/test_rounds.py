from service.bench.rounds import Run, compare, measure_in_turn, median_speed


def test_sides_take_turns_after_an_untimed_round():
    order = []
    ours = lambda: order.append("A") or Run(tokens=len(order), seconds=1.0)  # noqa: E731
    other = lambda: order.append("B") or Run(tokens=len(order), seconds=1.0)  # noqa: E731
    runs, others = measure_in_turn(ours, other, 2)
    assert "".join(order) == "ABABAB"
    assert [run.tokens for run in runs] == [3, 5]
    assert [run.tokens for run in others] == [4, 6]
    assert measure_in_turn(ours, None, 1) == ([Run(tokens=8, seconds=1.0)], [])


def test_the_ratio_is_taken_within_each_round():
    runs = [Run(tokens=100, seconds=1.0), Run(tokens=100, seconds=10.0), Run(tokens=100, seconds=2.0)]
    others = [Run(tokens=50, seconds=1.0), Run(tokens=50, seconds=10.0), Run(tokens=100, seconds=6.0)]
    assert compare(runs, others) == (2.0, 2.0, 3.0)
    assert median_speed(runs) == 50.0
