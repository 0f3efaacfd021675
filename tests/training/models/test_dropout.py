import torch

from training.models.dropout import VariationalDropout


def test_one_mask_for_all_positions_of_a_row_and_another_for_each_row() -> None:
    torch.manual_seed(0)
    dropped = VariationalDropout(0.25).train()(torch.ones(8, 5, 200))
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert len({tuple(row.tolist()) for row in dropped[:, 0]}) == 8
    assert 0.2 < (dropped == 0).float().mean() < 0.3


def test_nothing_is_dropped_outside_of_training() -> None:
    x = torch.ones(2, 3, 4)
    assert VariationalDropout(0.5).eval()(x) is x
    assert VariationalDropout(0.0).train()(x) is x
