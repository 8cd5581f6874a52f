from types import SimpleNamespace

from lightning_recall.callbacks.output import output_path


def test_files_go_to_the_runs_folder_else_to_the_root(tmp_path):
    run = SimpleNamespace(log_dir=str(tmp_path / "runs" / "version_0"), default_root_dir=str(tmp_path))
    assert output_path(run, "x.png") == tmp_path / "runs" / "version_0" / "x.png"
    assert (tmp_path / "runs" / "version_0").is_dir()
    run.log_dir = None
    assert output_path(run, "x.png") == tmp_path / "x.png"
