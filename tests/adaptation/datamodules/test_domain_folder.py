import numpy as np
import pytest
import torch
from PIL import Image

from lightning_recall.adaptation.data import PhotoTransforms
from lightning_recall.adaptation.datamodules import DomainFolderDataModule

SMALL = PhotoTransforms(size=8, resize=10)
NUMBERED = tuple(enumerate(("bus", "cup", "pen")))


def draw_domain(root, domain, classes=("bus", "cup", "pen"), count=4, between=""):
    """Images of one colour: (number of the class, number of the image)."""
    for label, name in enumerate(classes):
        folder = root / domain / between / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (12, 9), (10 * label, number, 0)).save(folder / f"{number}.png")


def ready(root, **kwargs):
    settings = {"source": "amazon", "target": "webcam", "transforms": SMALL, "batch_size": 4, **kwargs}
    data = DomainFolderDataModule(str(root), **settings)
    data.check_data()
    data.setup()
    return data


@pytest.fixture
def root(tmp_path):
    draw_domain(tmp_path, "amazon", between="images")
    draw_domain(tmp_path, "webcam", count=3)
    return tmp_path


def items(loader):
    """(label, class by colour, number) of the images."""
    return [
        (int(label), int(image[0, 0, 0]) // 10, int(image[1, 0, 0]))
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
    ]


def test_all_target_images_are_for_training_and_test(root):
    data = ready(root)
    assert data.class_names == ("bus", "cup", "pen")
    assert data.image_size == 8
    sizes = {domain: {split: len(part) for split, part in parts.items()} for domain, parts in data.domains.items()}
    assert sizes == {"source": {"train": 9, "val": 3, "test": 3}, "target": {"train": 9, "val": 9, "test": 9}}
    expected = sorted((label, label, number) for label in range(3) for number in range(3))
    assert sorted(items(data.test_dataloader()["target"])) == expected
    for batch in data.train_dataloader():
        images, labels = batch["source"]
        assert images.dtype == torch.uint8
        assert images.shape == batch["target"].shape == (4, 3, 8, 8)
        assert (images[:, 0, 0, 0] // 10 == labels).all()
    assert data.domains["target"]["test"].image_path(3) == str(root / "webcam" / "cup" / "0.png")
    assert (data.domains["target"]["train"].labels == -1).all()


def test_test_images_can_be_held_out(root):
    target = ready(root, test_fraction=1 / 3).domains["target"]
    assert {split: len(part) for split, part in target.items()} == {"train": 6, "val": 6, "test": 3}
    paths = [target[split].paths.tolist() for split in ("train", "test")]
    assert not set(paths[0]) & set(paths[1])


def test_the_held_out_images_do_not_depend_on_the_labels(root, tmp_path):
    for split in ("web_a", "web_b"):
        lines = [f"webcam/{name}/{number}.png" for name in ("bus", "cup", "pen") for number in range(3)]
        labels = [0, 0, 0, 1, 1, 1, 2, 2, 2] if split == "web_a" else [0, 1, 2] * 3
        (tmp_path / f"{split}.txt").write_text("\n".join(f"{x} {y}" for x, y in zip(lines, labels, strict=True)))
    draw_domain(tmp_path, "numbers", "012")
    paths = [
        ready(root, source="amazon" if split == "web_a" else "numbers", target=split, test_fraction=0.4)
        .domains["target"]["train"]
        .paths.tolist()
        for split in ("web_a", "web_b")
    ]
    assert paths[0] == paths[1]


def test_a_target_without_classes(root, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.new("RGB", (9, 9)).save(tmp_path / "photos" / f"{number}.png")
    data = ready(root, target="photos")
    assert [label for label, _, _ in items(data.test_dataloader()["target"])] == [-1] * 5
    assert len(data.train_dataloader()) == 1
    with pytest.raises(ValueError, match="The source 'photos' has no classes"):
        ready(root, source="photos", target="webcam")


def test_lists_are_matched_by_class_names(root, tmp_path):
    lines = [f"webcam/{name}/0.png {label}" for label, name in enumerate(("pen", "bus", "cup"))]
    (tmp_path / "web_train.txt").write_text("\n".join(lines))
    (tmp_path / "web_test.txt").write_text("webcam/cup/1.png 2\n")
    data = ready(root, target="web", batch_size=3)
    assert sorted(items(data.val_dataloader()["target"])) == [(0, 0, 0), (1, 1, 0), (2, 2, 0)]
    assert items(data.test_dataloader()["target"]) == [(1, 1, 1)]


def test_a_subset_of_the_classes(root, tmp_path):
    draw_domain(tmp_path, "caltech", ("cup", "mug", "pen"), count=2)
    message = r"'caltech' has 'mug' and lacks 'bus': .* Both domains have 'cup', 'pen': pass these as classes"
    with pytest.raises(ValueError, match=message):
        ready(root, target="caltech")
    data = ready(root, target="caltech", classes=["pen", "cup"])
    assert data.class_names == ("pen", "cup")
    assert len(data.domains["target"]["train"]) == 4
    assert {(label, color) for label, color, _ in items(data.test_dataloader()["target"])} == {(0, 2), (1, 0)}
    assert {(label, color) for label, color, _ in items(data.test_dataloader()["source"])} == {(0, 2), (1, 1)}
    with pytest.raises(ValueError, match="'amazon' lacks 'mug'"):
        ready(root, target="caltech", classes=["mug", "cup"])


def test_a_target_that_lacks_a_class(root, tmp_path):
    draw_domain(tmp_path, "caltech", ("cup", "mug", "pen"), count=2)
    with pytest.warns(UserWarning, match="target 'caltech' has no training image of 'bus'"):
        data = ready(root, target="caltech", classes=["bus", "cup", "pen"])
    assert {label for label, _, _ in items(data.test_dataloader()["source"])} == {0, 1, 2}
    assert sorted(items(data.test_dataloader()["target"])) == [(1, 0, 0), (1, 0, 1), (2, 2, 0), (2, 2, 1)]
    draw_domain(tmp_path, "other", ("session",), count=2)
    for classes in (["bus", "cup", "pen"], None):
        with pytest.raises(ValueError, match=r"'other' .*lacks .* If the images in 'other' have no labels, put them"):
            ready(root, target="other", classes=classes)


def test_the_same_images_in_both_domains(root, tmp_path):
    (tmp_path / "link").symlink_to(root / "webcam")
    for target in ("link", "webcam/"):
        with pytest.raises(ValueError, match=r"'webcam'.* are the same folder"):
            ready(root, source="webcam", target=target)
    lines = [f"{domain}/{name}/0.png {label}" for domain in ("webcam", "amazon/images") for label, name in NUMBERED]
    (tmp_path / "both.txt").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=r"3 files are in both domains, such as webcam/bus/0\.png"):
        ready(root, source="both", target="webcam", batch_size=2)


@pytest.mark.parametrize("broken", ["amazon/images", "webcam"])
def test_a_broken_image(root, broken):
    (root / broken / "bus" / "1.png").write_bytes(b"broken")
    settings = {"val_fraction": 0, "epoch_length": "longer"}  # all images train
    loader = ready(root, **settings).train_dataloader()
    with pytest.raises(ValueError, match=r"Cannot read the image .*1.png"):
        list(loader)
    loader = ready(root, transforms=PhotoTransforms(size=8, resize=10, on_error="skip"), **settings).train_dataloader()
    with pytest.warns(UserWarning, match="Cannot read the image"):
        batches = list(loader)
    assert [len(batch["target"]) for batch in batches] == [4, 4, 4]
    for batch in batches:  # another image of the class, or of the target
        assert (batch["source"][0][:, 0, 0, 0] // 10 == batch["source"][1]).all()


def test_random_crops_do_not_depend_on_workers(root):
    for file in root.rglob("*.png"):
        noise = np.random.default_rng(len(str(file))).integers(256, size=(9, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file)
    batches = [next(iter(ready(root, num_workers=workers).train_dataloader())) for workers in (0, 2)]
    assert torch.equal(batches[0]["source"][0], batches[1]["source"][0])
    assert torch.equal(batches[0]["target"], batches[1]["target"])


def test_errors(root, tmp_path):
    for kwargs, message in (
        ({"target": "amazon"}, "source and target must differ, got 'amazon' twice"),
        ({"target": "dslr"}, "dslr does not exist"),
        ({"test_fraction": 1}, "test_fraction must be at least 0 and below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ready(root, **kwargs)
    with pytest.raises(ValueError, match=r"nowhere does not exist.*Layouts"):
        ready(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a file: pass a folder"):
        ready(root / "webcam" / "bus" / "0.png")
    (tmp_path / "web.txt").write_text(
        "".join(f"webcam/{name}/7.png {i}\n" for i, name in enumerate(("bus", "cup", "pen")))
    )
    with pytest.raises(ValueError, match="3 of 3 checked files cannot be found"):
        ready(root, target="web")
