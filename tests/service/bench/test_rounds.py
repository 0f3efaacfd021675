from service.bench.rounds import Run, Side, compare, measure_in_turn, median_speed


def make_side(name: str, order: list[str]) -> Side[int, Run]:
    def run(load: int) -> Run:
        order.append(f"{name}{load}")
        return Run(tokens=load, seconds=1.0)

    return Side(run)


def test_sides_take_turns_at_the_same_loads():
    order = []
    sides = [make_side("A", order), make_side("B", order), make_side("C", order)]
    measure_in_turn(sides, [7, 8, 9])
    assert " ".join(order) == "A7 B7 C7 A8 B8 C8 A9 B9 C9"
    assert all([run.tokens for run in side.runs] == [8, 9] for side in sides)


def test_the_first_round_counts_where_nothing_may_be_lost():
    side = make_side("A", [])
    measure_in_turn([side], [7, 8], warm_up=False)
    assert [run.tokens for run in side.runs] == [7, 8]


def test_the_ratio_is_taken_within_each_round():
    runs = [Run(tokens=100, seconds=1.0), Run(tokens=100, seconds=10.0), Run(tokens=100, seconds=2.0)]
    others = [Run(tokens=50, seconds=1.0), Run(tokens=50, seconds=10.0), Run(tokens=100, seconds=6.0)]
    assert compare(runs, others) == (2.0, 2.0, 3.0)
    assert median_speed(runs) == 50.0
