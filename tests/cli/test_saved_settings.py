from types import SimpleNamespace

from jsonargparse import Namespace

from lightning_recall._lightning import PACKAGE
from lightning_recall.cli import saved_settings
from lightning_recall.cli.saved_settings import SaveSettings


def test_checkpoints_hold_settings_that_download_nothing_and_keep_a_modules_own():
    embedder = Namespace(init_args=Namespace(backbone="resnet18", pretrained=True, freeze_batch_norm=None))
    model = Namespace(class_path="a.B", init_args=Namespace(embedder=embedder))
    settings = SaveSettings(None, Namespace(model=model))
    checkpoint, own = {}, {"hyper_parameters": {"width": 3}}
    for content in (checkpoint, own):
        settings.on_save_checkpoint(None, None, content)
    assert own == {"hyper_parameters": {"width": 3}}
    saved = checkpoint["hyper_parameters"]
    assert (saved["_class_path"], saved["_instantiator"]) == ("a.B", f"{PACKAGE}.cli.instantiate_module")
    assert saved["embedder"]["init_args"] == {"backbone": "resnet18", "pretrained": False, "freeze_batch_norm": True}
    assert embedder.init_args.pretrained is True  # of this run


def test_settings_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_settings, "output_path", lambda _, name: tmp_path / name)
    written = []
    parser = SimpleNamespace(save=lambda _, path, **options: written.append((path.name, options["skip_unset"])))
    settings = SaveSettings(parser, Namespace())
    for _ in range(2):
        settings.setup(SimpleNamespace(is_global_zero=True), None, "fit")
    assert written == [("config.yaml", False)]
