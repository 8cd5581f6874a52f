import pytest
import torch

from lightning_recall.benchmarks.side_by_side_images import ImageTask
from lightning_recall.benchmarks.side_by_side_measure import gradient_error

# Replaces a clone of the published code: a loss of one query, and a loop over the chunks of a batch.
LOSSES = """
import torch
class RecallatK(torch.nn.Module):
    def __init__(self, *args, mixup):
        super().__init__()
    def forward(self, preds, q):
        return (preds @ preds[q]).square().mean() / len(preds)
"""
MAIN = """
import a_package_that_is_not_installed
def train_one_epoch(train_dataloader, model, optimizer, criterion, opt, epoch):
    for labels, images in tqdm(train_dataloader):
        output = torch.zeros(len(images), opt.embed_dim).to(opt.device)
        chunks = [slice(j, j + opt.bs_base) for j in range(0, len(images), opt.bs_base)]
        for chunk in chunks:
            output[chunk] = model(images[chunk]).detach()
        output.requires_grad_()
        sum(criterion(output, q) for q in range(len(output))).backward()
        for chunk in chunks:
            model(images[chunk]).backward(output.grad[chunk])
        optimizer.step()
        optimizer.zero_grad()
    LOG.log("train", LOG.metrics_to_log["train"], [epoch])
"""


@pytest.fixture
def task(glyph_folder, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "losses.py").write_text(LOSSES)
    (tmp_path / "src" / "main.py").write_text(MAIN)
    return ImageTask(16, 4, published=str(tmp_path), root=str(glyph_folder))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")  # the task computes the score
def test_gradients_are_those_of_one_graph(task):
    pytest.importorskip("pytorch_metric_learning")  # a test tool
    rows = {row.name: row for row in task.rows()}
    assert len(rows) == 9
    assert {name: gradient_error(task, row) for name, row in rows.items()} == pytest.approx(
        dict.fromkeys(rows, 0.0), abs=1e-12
    )
    published = rows.pop("published step, chunks, RecallatK (published)")
    with_dropout = {name: gradient_error(task, row, dropout=0.1) for name, row in rows.items()}
    assert with_dropout == pytest.approx(dict.fromkeys(rows, 0.0), abs=1e-12)
    assert gradient_error(task, published, dropout=0.1) > 0.01  # it draws other masks in its second pass


def test_batches_are_as_the_published_code_expects(task):
    images, labels = task.batches(2)[1]
    assert images.shape == (16, 1, 32, 32)
    assert labels.reshape(4, 4).unique(dim=1).shape == (4, 1)
    halves = [task.local_batch((images, labels), rank, 2) for rank in range(2)]
    torch.testing.assert_close(torch.cat([part for part, _ in halves]), images)
    torch.testing.assert_close(torch.cat([part for _, part in halves]), labels)


def test_scores_and_timm_models(task, glyph_folder):
    assert 0.1 < task.score(task.build().eval()) < 0.9
    model = ImageTask(16, 4, "resnet10t", root=str(glyph_folder)).build(0.1)
    assert model(task.batches(1)[0][0]).shape == (16, 128)


def test_absent_code_is_named(glyph_folder):
    task = ImageTask(16, 4, root=str(glyph_folder))
    assert "--published DIR" in task.absent()["published code"]
    assert not any("published" in row.step for row in task.rows())
