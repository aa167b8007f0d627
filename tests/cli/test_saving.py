"""What fit leaves in TensorBoard."""

from command_lines import fit_command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from deqcert.cli import main


def test_fit_logs_its_settings_beside_its_last_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left_out = ("--trainer.logger=false", "--ckpt_path=last_or_new")
    command = [argument for argument in fit_command(tmp_path) if argument not in left_out]
    command += ["--trainer.logger.save_dir", str(tmp_path), "--trainer.logger.name", "board"]
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1"]
    assert main([*command, *short]) == 0
    (file,) = tmp_path.glob("board/version_0/events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["model/sigma"].number_value == 0.5
    assert settings["model/network/class_path"].string_value.endswith("MDEQ")
    assert settings["model/objective/class_path"].string_value.endswith("Gaussian")
    assert settings["trainer/max_epochs"].number_value == 1
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = {info.name.tag for info in HParamsPluginData.FromString(content).experiment.metric_infos}
    assert {"val/accuracy_under_noise", "train/loss"} <= metrics
