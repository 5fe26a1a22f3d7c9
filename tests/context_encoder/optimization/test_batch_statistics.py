"""Several processes compute what one computes on the same global batch.

``RELIABILITY_LONG=1`` takes all presets.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from context_encoder.config import PRESETS, TrainConfig, preset
from context_encoder.data import to_input
from context_encoder.optimization.batch_statistics import share_batch_statistics
from context_encoder.pretexts import Samples
from context_encoder.runs import Photos
from context_encoder.training import Trainer, resolve
from context_encoder.utils.device import Processes
from tests.helpers.small_runs import save_photos

LONG = "RELIABILITY_LONG" in os.environ
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["context_encoder.training.trainer"])
STEPS = 5


def in_processes(target: object, count: int, *arguments: object) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        SERVER.Process(target=_rank, args=(rank, count, port, target, arguments))  # type: ignore[attr-defined]
        for rank in range(count)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(7200 if LONG else 300)  # all presets take an hour on a busy machine
        assert process.exitcode == 0


def _rank(rank: int, count: int, port: int, target: object, arguments: tuple[object, ...]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", rank=rank, world_size=count)
    target(Processes(rank, rank, count), *arguments)  # type: ignore[operator]
    if count > 1:
        dist.destroy_process_group()


def train(processes: Processes, photos: Path, cases: dict[str, dict[str, Any]], out: Path) -> None:
    """Weights and losses after some steps in float64, of every case."""
    torch.set_default_dtype(torch.float64)
    found: dict[str, torch.Tensor] = {}
    for name, options in cases.items():
        config = TrainConfig.model_validate(
            {"batch_size": 4, "workers": 0, "data": photos, **options}
        )
        files = Photos.from_config(config)
        trainer = Trainer(resolve(config, files), files, torch.device("cpu"), processes)
        for part in trainer.pretext.parts().values():
            for module in part.module.modules():
                if isinstance(module, nn.Dropout | nn.Dropout2d):
                    module.p = 0.0  # drawn in every process
        for part_name in trainer.pretext.parts():
            trainer.learner.network(part_name).train()
        for step, (batch, _) in zip(range(STEPS), trainer.batches(), strict=False):
            image = to_input(batch["image"], torch.channels_last).double()
            samples = Samples(image, batch["epoch"], batch["index"])
            losses = trainer.pretext.train_step(samples, trainer.learner)
            loss = losses["loss"] / processes.world_size
            if processes.world_size > 1:
                dist.all_reduce(loss)
            found[f"{name}/loss/{step}"] = loss
        for part_name, part in trainer.pretext.parts().items():
            for key, value in part.module.state_dict().items():
                found[f"{name}/{part_name}/{key}"] = value.contiguous()
    if processes.first:
        save_file(found, out)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos", 12)
    cases: dict[str, dict[str, Any]] = {
        "laptop": {"size": 32},
        "adversarial": {"size": 32, "lambda_adv": 0.01},
        "relative-patch": {"size": 32, "pretext": "relative-patch"},
    }
    for name in PRESETS if LONG else ():
        cases[name] = {"preset": name}
        if not preset(name).model.startswith("dcgan"):  # those have one size
            cases[name]["size"] = 99 if preset(name).model.startswith("alexnet") else 32
    outs = [tmp_path / f"{count}.safetensors" for count in (1, 2)]
    for count, out in enumerate(outs, start=1):
        in_processes(train, count, tmp_path / "photos", cases, out)
    one, two = map(load_file, outs)
    assert one.keys() == two.keys()
    always = ("laptop/", "adversarial/", "relative-patch/")
    for key, value in one.items():
        # Of all presets, the largest found are 2e-8 (a bias before a normalisation) and 3e-9.
        weights = 1e-9 if key.startswith(always) else 1e-7
        scale = max(float(value.double().abs().max()), 1e-3)
        error = float((two[key] - value).double().abs().max()) / scale
        # Adam turns rounding errors of gradients that are 0 but for rounding, such as those of
        # biases before a normalisation, into steps; the losses show that they have no effect.
        assert error < (1e-10 if "/loss/" in key else weights), (key, error)


def compare_layers(processes: Processes) -> None:
    """Output, gradients and running statistics of the layer, against torch's on the whole batch."""
    generator = torch.Generator().manual_seed(0)
    for plain, shape in ((nn.BatchNorm2d(3), (8, 3, 5, 4)), (nn.BatchNorm1d(3), (8, 3))):
        whole = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 50
        weights = torch.randn(shape, generator=generator, dtype=torch.float64)
        plain = plain.double()
        with torch.no_grad():
            plain.weight.copy_(torch.randn(3, generator=generator))
        shared = type(plain)(3).double()
        shared.load_state_dict(plain.state_dict())
        share_batch_statistics(shared)
        x = whole.clone().requires_grad_()
        wanted_result = plain(x)
        (wanted_result * weights).sum().backward()
        mine = slice(processes.rank * 4, processes.rank * 4 + 4)
        own = whole[mine].clone().requires_grad_()
        result = shared(own)
        (result * weights[mine]).sum().backward()
        torch.testing.assert_close(result, wanted_result[mine], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(own.grad, x.grad[mine], rtol=1e-10, atol=1e-12)
        for parameter, wanted in zip(shared.parameters(), plain.parameters(), strict=True):
            dist.all_reduce(parameter.grad)
            torch.testing.assert_close(parameter.grad, wanted.grad, rtol=1e-10, atol=1e-12)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(shared.state_dict()[name], value, rtol=1e-10, atol=0)
        torch.testing.assert_close(shared.eval()(own), plain.eval()(own))


def test_the_layer_is_that_of_the_whole_batch() -> None:
    in_processes(compare_layers, 2)


def test_names_of_weights_stay() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    before = list(network.state_dict())
    share_batch_statistics(network)
    assert list(network.state_dict()) == before
    assert isinstance(network[1], nn.BatchNorm2d)
    with pytest.raises(ValueError, match="4D"):
        network[1](torch.zeros(2, 2))
