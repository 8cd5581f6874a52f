from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lightning_recall.compression import size_table
from lightning_recall.embedding_sets import EmbeddingSet
from lightning_recall.metrics import RetrievalScores

NUM, DIM = 300, 32


def embedding_set(seed=0, **known):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(NUM) // 6
    centers = torch.randn(NUM // 6, DIM, generator=generator)
    embeddings = centers[labels] + 1.6 * torch.randn(NUM, DIM, generator=generator) + 0.3
    return EmbeddingSet(Path(f"set {seed}"), embeddings, torch.arange(NUM), labels, **known)


def reference(embeddings, labels):
    metric = RetrievalScores(("recall", "map@r"), (1, 10))
    metric.update(embeddings, labels)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.fixture(scope="module")
def rows():
    """The rows with rescoring of all candidates, by method and dimension."""
    table = size_table(embedding_set(), dims=(16, 8), fit=embedding_set(1), oversampling=NUM)
    assert [row.bytes_per_image for row in table] == sorted(row.bytes_per_image for row in table)
    return {(row.method, row.dim): row for row in table}


def test_the_full_row_is_retrieval_scores(rows):
    known = embedding_set()
    assert rows["full", DIM].scores == reference(known.embeddings, known.labels)
    assert rows["full", DIM].bytes_per_image == 4 * DIM


def test_dimensions(rows):
    known, fit = embedding_set(), embedding_set(1)
    assert rows["leading 8", 8].scores == reference(known.embeddings[:, :8], known.labels)
    units, others = F.normalize(known.embeddings.double()), F.normalize(fit.embeddings.double())
    _, _, directions = torch.linalg.svd(others - others.mean(0), full_matrices=False)
    projected = (units - others.mean(0)) @ directions[:8].T
    assert rows["PCA 8", 8].scores == pytest.approx(reference(projected, known.labels), abs=1e-5)
    assert rows["PCA 8", 8].bytes_per_image == 32
    assert rows["PCA 8", 8].shared_bytes == 4 * (8 * DIM + DIM)


def asymmetric(queries, items, labels):
    """Scores of leave-one-out by a loop, without ties."""
    hits, precisions = [], []
    for query in range(NUM):
        similarities = queries[query] @ items.T
        similarities[query] = -torch.inf
        relevant = (labels == labels[query])[similarities.argsort(descending=True)[:5]]
        hits.append(float(relevant[0]))
        precisions.append(sum(relevant[: i + 1].double().mean().item() for i in range(5) if relevant[i]) / 5)
    return sum(hits) / NUM, sum(precisions) / NUM


def test_float16_and_int8_round_the_gallery_only(rows):
    known, fit = embedding_set(), embedding_set(1)
    units, others = F.normalize(known.embeddings), F.normalize(fit.embeddings)
    step = others.abs().amax(0) / 127
    rounded = (units / step).round().clamp(-127, 127) * step
    for method, items in (("float16", units.half().double()), ("int8", rounded.double())):
        recall, precision = asymmetric(units.double(), items, known.labels)
        assert rows[method, DIM].scores["recall@1"] == pytest.approx(recall, abs=1e-6)
        assert rows[method, DIM].scores["map@r"] == pytest.approx(precision, abs=1e-6)
    assert (rows["float16", DIM].bytes_per_image, rows["int8", DIM].bytes_per_image) == (2 * DIM, DIM)


def test_binary_codes(rows):
    known, fit = embedding_set(), embedding_set(1)
    centered = F.normalize(known.embeddings) - F.normalize(fit.embeddings).mean(0)
    for name, values in (("binary", known.embeddings), ("binary, centred", centered)):
        assert rows[name, DIM].scores == pytest.approx(reference(values.sign(), known.labels))
        assert rows[name, DIM].bytes_per_image == DIM / 8


def test_rescoring_all_candidates_is_an_exact_search_of_the_finer_codes(rows):
    known, fit = embedding_set(), embedding_set(1)
    for name in ("binary", "binary, centred"):
        row = rows[f"{name}, x{NUM} int8", DIM]
        assert row.scores == pytest.approx(rows["int8", DIM].scores)
        assert row.bytes_per_image == DIM / 8 + DIM
    centered = F.normalize(known.embeddings) - F.normalize(fit.embeddings).mean(0)
    recall, precision = asymmetric(centered.double(), centered.sign().double(), known.labels)
    row = rows[f"binary, centred, x{NUM} float", DIM]
    assert row.scores["recall@1"] == pytest.approx(recall, abs=1e-6)
    assert row.scores["map@r"] == pytest.approx(precision, abs=1e-6)
    assert row.bytes_per_image == DIM / 8


@pytest.mark.filterwarnings("ignore:No row for")  # the gallery is too small for a product quantizer
def test_rescoring_reads_the_codes_of_the_gallery():
    is_query = torch.arange(NUM) % 3 == 0
    known = embedding_set(is_query=is_query, is_gallery=~is_query)
    table = {row.method: row.scores for row in size_table(known, dims=(), oversampling=NUM)}
    assert table[f"binary, x{NUM} int8"] == pytest.approx(table["int8"])


def test_few_candidates_lose_what_hamming_distance_misses():
    table = {row.method: row.scores for row in size_table(embedding_set(), ks=(1,), dims=(), oversampling=2)}
    few, exact = table["binary, x2 int8"], table["int8"]
    assert table["binary"]["recall@1"] < few["recall@1"] < exact["recall@1"]


def test_faiss_rows():
    pytest.importorskip("faiss")  # an extra
    table = [row for row in size_table(embedding_set(), dims=()) if row.family == "faiss"]
    names = ["PQ4", "IVF37,PQ4, nprobe 4", "IVF37,Flat, nprobe 4", "HNSW32, efSearch 64"]
    assert [row.method for row in table] == names
    full = reference(embedding_set().embeddings, embedding_set().labels)
    product, _, lists, graph = (row.scores for row in table)
    assert graph["recall@1"] == pytest.approx(full["recall@1"], abs=0.02)
    assert 0.2 < product["recall@1"] < lists["recall@1"] <= full["recall@1"]
    assert all(row.engine == "faiss" and row.search_ms > 0 and row.build_seconds > 0 for row in table)


def test_rows_that_cannot_be_fitted_are_named():
    few = embedding_set()._replace(embeddings=embedding_set().embeddings[:10], labels=torch.arange(10) // 2)
    few = few._replace(ids=torch.arange(10))
    with pytest.warns(UserWarning, match="No row for") as warned:
        table = size_table(few, ks=(1,), dims=(12,))
    texts = [str(warning.message) for warning in warned]
    assert texts[0] == "No row for PCA to 12 dimensions: it needs more than 12 embeddings to fit, got 10."
    assert texts[1] == "No row for PQ4: it needs 256 embeddings to fit, got 10."
    assert not any(row.family == "PCA" for row in table)


def test_without_faiss_torch_searches(monkeypatch):
    for module in ("sizes", "searches"):
        monkeypatch.setattr(f"lightning_recall.compression.{module}.has_faiss", lambda: False)
    with pytest.warns(UserWarning, match=r'not installed: pip install "lightning-recall\[faiss\]"'):
        table = size_table(embedding_set(), ks=(1,), dims=())
    assert {row.engine for row in table} == {"torch"}
    assert len(table) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (32,)}, r"from 1 to 31, below the dimension 32, got \[32\]"),
        ({"dims": (8, 8)}, "distinct"),
        ({"dims": (0,)}, "dims must be at least 1, got 0"),
        ({"max_queries": 0}, "max_queries must be at least 1, got 0"),
        ({"oversampling": 1}, "oversampling must be at least 2, got 1"),
        ({"fit": embedding_set()}, "set 0 is both fitted on and evaluated"),
        ({"fit": embedding_set(1)._replace(embeddings=torch.ones(NUM, 7))}, "dimension 7, set 0 of 32: pass equal"),
        ({"fit": embedding_set(1, model={"weights": "b" * 64})}, r"another model \(weights bbbbbbbb\) than set 0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        size_table(embedding_set(model={"weights": "a" * 64}), **options)


def test_one_dimension_is_too_few():
    flat = embedding_set()._replace(embeddings=embedding_set().embeddings[:, :1])
    with pytest.raises(ValueError, match="at least 2 dimensions to make them smaller, got 1"):
        size_table(flat)
