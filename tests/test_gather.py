import torch
from torch import distributed
from torch.multiprocessing import start_processes

from lightning_recall import gather_rows

ROWS = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PARTS = (slice(0, 3), slice(3, 7))


def loss_of(rank, rows):
    return (rank + 1) * ((rows @ rows.T).square().sum() + rows.pow(3).sum())


def penalty_gradient(rank, folder):
    """Gradient and that of its square norm, by the rows of a process."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    own = ROWS[PARTS[rank]].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss_of(rank, gather_rows(own)), own, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), own)
    torch.save([first.detach(), second], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_second_derivatives_are_those_of_one_process(tmp_path):
    start_processes(penalty_gradient, (str(tmp_path),), 2, start_method="fork")
    rows = ROWS.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss_of(0, rows) + loss_of(1, rows), rows, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), rows)
    for rank, part in enumerate(PARTS):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, [first[part].detach(), second[part]], atol=1e-9, rtol=0)
