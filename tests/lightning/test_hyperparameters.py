import math

from command_lines import fit_command
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from deqcert.cli import main
from deqcert.lightning import log_hyperparameters
from deqcert.lightning.hyperparameters import flat_settings


def test_nested_settings_become_one_level_of_what_tensorboard_shows():
    settings = {
        "sigma": 0.5,
        "compile": False,
        "audit": None,
        "channels": [8, 16],
        "limit": math.inf,
        "smoothing": {"class": "deqcert.smoothing.serialized.Serialized", "n": 100},
        "network": {"class_path": "deqcert.models.MDEQ", "init_args": {"solver": {"class_path": "a.B"}}},
    }
    assert flat_settings(settings) == {
        "sigma": 0.5,
        "compile": False,
        "audit": "None",
        "channels": "[8, 16]",
        "limit": "inf",
        "smoothing": "Serialized",
        "smoothing.n": 100,
        "network": "MDEQ",
        "network.solver": "B",
    }


def test_other_loggers_are_left_alone(tmp_path):
    log_hyperparameters([CSVLogger(tmp_path)], {"a": 1}, {"b": 1.0}, 1)
    assert list(tmp_path.iterdir()) == []


def test_fit_logs_its_settings_beside_its_last_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [
        argument
        for argument in fit_command(tmp_path)
        if argument not in ("--trainer.logger=false", "--ckpt_path=last_or_new")
    ]
    logger = ["--trainer.logger.save_dir", str(tmp_path), "--trainer.logger.name", "board"]
    assert (
        main(
            [
                *command,
                *logger,
                "--trainer.max_epochs=1",
                "--trainer.limit_train_batches=2",
                "--trainer.log_every_n_steps=1",
            ]
        )
        == 0
    )
    (file,) = tmp_path.glob("board/version_0/events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["model.sigma"].number_value == 0.5
    assert settings["model.network"].string_value == "MDEQ"
    assert settings["model.objective"].string_value == "Gaussian"
    assert settings["trainer.max_epochs"].number_value == 1
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = {info.name.tag for info in HParamsPluginData.FromString(content).experiment.metric_infos}
    assert {"val/accuracy_under_noise", "train/loss"} <= metrics
