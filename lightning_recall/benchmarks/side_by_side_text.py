"""Text rows of the side-by-side benchmark: this library, sentence-transformers and GradCache."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_recall.benchmarks.side_by_side_task import Batches, OptimizerFactory, Row
from lightning_recall.gather import gather_rows
from lightning_recall.recompute import chunked_forward

DIM, LAYERS, HEADS = 128, 2, 4
WORDS, TOPIC_WORDS = 500, 6  # of a language, of a topic
LENGTHS = 8, 32  # shortest and longest text, in tokens
SCALE = 20.0  # inverse temperature, the default of sentence-transformers
LOSS = "in-batch softmax"
TEST_SEED, TEST_PAIRS = 10**6, 1000

Texts = dict[str, Tensor]
"""input_ids and attention_mask, (B, T) each, as a tokenizer returns them"""
Pairs = tuple[Texts, Texts]
"""questions and answers"""


@dataclass(frozen=True)
class TextTask:
    """Pairs of random texts, a small BERT with random weights, and a softmax over the answers of the batch.

    Args:
        batch_size: pairs in a batch.
        chunk_size: texts in one pass of the network.
        grad_cache: folder of a clone of github.com/luyug/GradCache; None: the installed package, if any.
    """

    batch_size: int = 256
    chunk_size: int = 64
    grad_cache: str | None = None
    items: str = "pairs"

    def absent(self) -> dict[str, str]:
        """Rows that are left out, and what they need."""
        if find_spec("transformers") is None:
            return {"all text rows": "pip install transformers"}
        hints = {}
        if find_spec("sentence_transformers") is None:
            hints["sentence-transformers"] = "pip install sentence-transformers"
        if not self.has_grad_cache():
            hints["GradCache"] = "git clone https://github.com/luyug/GradCache, then --grad-cache DIR"
        return hints

    def has_grad_cache(self) -> bool:
        """Whether GradCache can be imported."""
        if self.grad_cache is not None and self.grad_cache_source() not in sys.path:
            sys.path.insert(0, self.grad_cache_source())
        return find_spec("grad_cache") is not None

    def grad_cache_source(self) -> str:
        """The folder of the clone that holds the package.

        Raises:
            ValueError: if there is none.
        """
        source = Path(self.grad_cache or "") / "src"
        if not (source / "grad_cache" / "grad_cache.py").exists():
            raise ValueError(f"{source / 'grad_cache'} not found: give the folder of a clone of GradCache.")
        return str(source)

    def rows(self) -> list[Row]:
        """This library first."""
        absent, size = self.absent(), self.chunk_size
        if "all text rows" in absent:
            return []
        steps: dict[str, tuple[Any, bool]] = {
            "chunked_forward": (partial(train_chunked, size, 1), True),
            "chunked_forward, all kept": (partial(train_chunked, size, 2 * self.batch_size), True),
            "chunked_forward, whole batch": (partial(train_chunked, self.batch_size, 2), False),
        }
        if "sentence-transformers" not in absent:
            steps["sentence-transformers, cached"] = (partial(train_sentence_transformers, size), True)
            steps["sentence-transformers, whole batch"] = (partial(train_sentence_transformers, None), False)
        if "GradCache" not in absent:
            steps["GradCache"] = (partial(train_grad_cache, size), True)
        return [Row(step, LOSS, train, loss_of_pairs, in_chunks) for step, (train, in_chunks) in steps.items()]

    def build(self, dropout: float = 0.0) -> nn.Module:
        """The encoder; dropout acts on its embeddings, layers and attention."""
        torch.manual_seed(0)
        return TextEncoder(dropout).train()

    def batches(self, count: int) -> list[Pairs]:
        """Pairs with other topics in each batch."""
        return [draw_pairs(self.batch_size, seed) for seed in range(count)]

    def local_batch(self, batch: Pairs, rank: int, processes: int) -> Pairs:
        """Consecutive pairs."""
        questions, answers = ({name: t.chunk(processes)[rank] for name, t in texts.items()} for texts in batch)
        return questions, answers

    def in_chunks(self, model: nn.Module) -> Callable[[Texts], Tensor]:
        """Chunks of `chunk_size` texts."""

        def embed(texts: Texts) -> Tensor:
            parts = [torch.split(tensor, self.chunk_size) for tensor in texts.values()]
            return torch.cat([model(dict(zip(texts, part, strict=True))) for part in zip(*parts, strict=True)])

        return embed

    def score(self, model: nn.Module) -> float:
        """Fraction of questions, on new topics, whose answer is the most similar of 1,000."""
        with torch.no_grad():
            questions, answers = (model(texts) for texts in draw_pairs(TEST_PAIRS, TEST_SEED))
        nearest = (questions @ answers.T).argmax(1)
        return float((nearest == torch.arange(TEST_PAIRS)).float().mean())


def draw_pairs(count: int, seed: int) -> Pairs:
    """Texts of 8 to 32 tokens on the topic of their pair, which has 6 words; half of the tokens are any words.

    Answers are in another language: word w of the questions is word w + 500 of the answers.
    """
    generator = torch.Generator().manual_seed(seed)
    topics = torch.randint(WORDS, (count, TOPIC_WORDS), generator=generator)

    def draw(first_word: int) -> Texts:
        shape = count, LENGTHS[1]
        words = topics.gather(1, torch.randint(TOPIC_WORDS, shape, generator=generator))
        others = torch.randint(WORDS, shape, generator=generator)
        tokens = first_word + torch.where(torch.rand(shape, generator=generator) < 0.5, words, others)
        length = torch.randint(LENGTHS[0], LENGTHS[1] + 1, (count, 1), generator=generator)
        mask = (torch.arange(LENGTHS[1]) < length).long()
        return {"input_ids": tokens * mask, "attention_mask": mask}  # 0 is the padding

    return draw(1), draw(1 + WORDS)


class TextEncoder(nn.Module):
    """A small BERT of transformers with random weights, averaged over the tokens.

    Accepts a dict, as `chunked_forward` and sentence-transformers pass it, or its entries by name, as GradCache does.

    Args:
        dropout: probability of dropout in all places where BERT has one.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=1 + 2 * WORDS,
            hidden_size=DIM,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * DIM,
            max_position_embeddings=LENGTHS[1],
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, texts: Texts | None = None, **named: Tensor) -> Tensor:
        """Unit embeddings (b, D). Drops columns that are padding in all texts, as sentence-transformers does."""
        texts = named if texts is None else texts
        longest = int(texts["attention_mask"].sum(1).max())
        texts = {name: tensor[:, :longest] for name, tensor in texts.items()}
        tokens = self.bert(**texts).last_hidden_state  # (b, T, D)
        mask = texts["attention_mask"][:, :, None].to(tokens.dtype)
        return F.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)


def in_batch_softmax(questions: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy of each question over the answers of the batch."""
    return F.cross_entropy(SCALE * questions @ answers.T, torch.arange(len(questions)))


def loss_of_pairs(embed: Callable[[Texts], Tensor], batch: Pairs) -> Tensor:
    """The loss of a batch in one graph."""
    questions, answers = batch
    return in_batch_softmax(embed(questions), embed(answers))


def parallel(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel, if there are several processes."""
    return DistributedDataParallel(model) if distributed.is_initialized() else model


def train_loop(
    backward: Callable[[Pairs], Any], model: nn.Module, batches: Batches, optimizer: OptimizerFactory
) -> None:
    """A plain training loop; `backward` adds the gradient of one batch."""
    stepped = optimizer(model.parameters())
    for batch in batches:
        backward(batch)
        stepped.step()
        stepped.zero_grad()


class ChunkedSoftmax(nn.Module):
    """The loss of a batch with `chunked_forward`.

    Args:
        model: texts -> embeddings.
        chunk_size: texts in one pass of the model.
        keep_chunks: number of chunks whose activations are stored.
    """

    def __init__(self, model: nn.Module, chunk_size: int, keep_chunks: int) -> None:
        super().__init__()
        self.model, self.chunk_size, self.keep_chunks = model, chunk_size, keep_chunks

    def forward(self, pairs: Pairs) -> Tensor:
        """The loss over the pairs of all processes; questions and answers are chunks of one batch."""
        embeddings = chunked_forward(self.model, list(pairs), self.chunk_size, self.keep_chunks)
        return in_batch_softmax(*map(gather_rows, embeddings.chunk(2)))


def train_chunked(
    chunk_size: int, keep_chunks: int, model: nn.Module, batches: Batches, optimizer: OptimizerFactory
) -> None:
    """Trains with this library."""
    loss = parallel(ChunkedSoftmax(model, chunk_size, keep_chunks))
    train_loop(lambda batch: loss(batch).backward(), model, batches, optimizer)


class SentenceFeatures(nn.Module):
    """The encoder as a module of a SentenceTransformer.

    Args:
        encoder: texts -> embeddings.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Texts) -> Texts:
        """Adds the embeddings to the features."""
        return {**features, "sentence_embedding": self.encoder(features)}


def train_sentence_transformers(
    chunk_size: int | None, model: nn.Module, batches: Batches, optimizer: OptimizerFactory
) -> None:
    """Trains with sentence-transformers' cached loss, or, without a chunk size, with its loss of the whole batch."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    transformer = SentenceTransformer(modules=[SentenceFeatures(model)], device="cpu").train()
    options = {"scale": SCALE, "gather_across_devices": distributed.is_initialized()}
    if chunk_size is None:
        loss = losses.MultipleNegativesRankingLoss(transformer, **options)
    else:
        loss = losses.CachedMultipleNegativesRankingLoss(transformer, mini_batch_size=chunk_size, **options)
    loss.model = parallel(transformer)  # as its Trainer does
    train_loop(lambda batch: loss(batch, None).backward(), model, batches, optimizer)


def train_grad_cache(chunk_size: int, model: nn.Module, batches: Batches, optimizer: OptimizerFactory) -> None:
    """Trains with GradCache, on several processes as its README describes."""
    from grad_cache import GradCache
    from grad_cache.loss import DistributedContrastiveLoss, SimpleContrastiveLoss

    several = distributed.is_initialized()
    loss = DistributedContrastiveLoss() if several else SimpleContrastiveLoss()
    wrapped = parallel(model)
    cache = GradCache([wrapped, wrapped], chunk_size, lambda x, y: loss(SCALE * x, y))
    train_loop(lambda batch: cache(*batch, no_sync_except_last=several), model, batches, optimizer)
