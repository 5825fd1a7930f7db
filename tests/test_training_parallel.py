"""The same run on any number of ranks: what 2 and 4 processes learn together, beside what one does."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import losses, metrics, settings, weights
from steps import OBJECTIVES, batch_of, built
from team import on_ranks
from test_models_backbones import MODELS
from test_models_backbones import settings as backbone_settings
from torch import Tensor

from vjepa import config
from vjepa.data.plan_training import TrainPlan
from vjepa.data.reader import Reader
from vjepa.data.sources import open_sources
from vjepa.errors import UserError
from vjepa.jepa import Jepa
from vjepa.models.ema import local
from vjepa.models.layers import Block
from vjepa.ranks import StepShare
from vjepa.training.optim import make_optimizer
from vjepa.training.pretraining import train
from vjepa.training.spread import Spread, kind_of, whole
from vjepa.training.step import TrainingStep
from vjepa.training.team import Team, assemble

# Widths are such that a half of every weight is whole vectors of the CPU: its fused AdamW rounds what is left over
# otherwise (seen on halves of 25 numbers, PyTorch 2.14).
NETWORKS = {
    "patch_px": 8,
    "encoder": {"width": 32, "depth": 2, "heads": 2, "drop_path": 0.3},
    "predictor": {"width": 32, "depth": 2, "heads": 2, "drop_path": 0.2},
}


def run_of(clips: Path, name: str, kind: str, accumulate: int = 1, clip: float | None = None) -> config.Config:
    return settings(
        clips,
        name,
        run={"save_every_steps": 10},
        model=NETWORKS,
        optim={"total_steps": 20, "clip_grad": clip},
        parallel={"kind": kind, "accumulate": accumulate},
    )


def far(one: config.Config, other: config.Config) -> float:
    """The largest difference of a weight, a moment or an average of two runs, or of a loss that they logged."""
    first, second = weights(one.run.dir), weights(other.run.dir)
    assert {file: tensors.keys() for file, tensors in first.items()} == {
        file: tensors.keys() for file, tensors in second.items()
    }
    apart = [
        float((first[file][name] - tensor).abs().max())
        for file, kept in second.items()
        for name, tensor in kept.items()
    ]
    rows = [losses(run.run.dir) for run in (one, other)]
    assert len(rows[0]) == len(rows[1]) == 20
    return max(apart + [abs(a - b) for a, b in zip(*rows, strict=True)])


def test_twenty_steps_are_the_same_of_two_micro_batches_and_of_two_ranks(clips) -> None:
    """By DDP, and by shards of FSDP2: equal bits; with clipping the norm is summed in another order. drop_path, and
    terms that compare all clips, are in it.
    """
    alone = {clip: run_of(clips, f"alone_{clip}", "auto", 2, clip) for clip in (None, 0.1)}
    shared = {
        (kind, clip): run_of(clips, f"{kind}_{clip}", kind, 1, clip) for kind in ("ddp", "fsdp2") for clip in alone
    }
    for run in alone.values():
        train(run, progress=False)
    for (kind, clip), run in shared.items():
        first, second = on_ranks(2, train, run, None, False)
        assert first == second and first["steps"] == 20
        assert far(run, alone[clip]) <= (0 if clip is None else 1e-6), kind
        rows, own = metrics(run.run.dir), metrics(alone[clip].run.dir)
        assert [row["step"] for row in rows] == list(range(21))
        assert rows[-1]["health/effective_rank"] == pytest.approx(own[-1]["health/effective_rank"], rel=1e-4)


def drawn_in(num: int, method: Jepa, clips: Tensor, step: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The masks, and what each clip keeps of each block, of a step in `num` parts; clips by their number."""
    kept, masks = [], []

    def skip(block: Block, update: Tensor) -> Tensor:
        ones = torch.ones(len(update), 1, 1)
        kept[-1].append(unpatched(block, ones).flatten())
        return update

    unpatched = Block._skip
    with monkeypatch.context() as patched:
        patched.setattr(Block, "_skip", skip)
        for place in range(num):
            size = len(clips) // num
            share = StepShare(place, num, lambda own: own.repeat(1, num, 1))
            kept.append([])
            method.terms(batch_of(clips[place * size : (place + 1) * size]), step, share)
            masks.append(method._inputs(batch_of(clips[:size]), step, share)[1])
    found = {f"kept {call}": torch.cat(parts) for call, parts in enumerate(zip(*kept, strict=True))}
    for number, sets in enumerate(zip(*masks, strict=True)):
        found |= {f"context {number}": torch.cat([mask.context_ids for mask in sets])}
        found |= {f"target {number}": torch.cat([mask.target_ids for mask in sets])}
    return found


@pytest.mark.fast
@pytest.mark.parametrize("mask", [{"ratio": 0.5}, {"kind": "multiblock", "num_blocks": 2, "trim": "raster"}])
def test_masks_and_what_clips_skip_do_not_depend_on_the_number_of_parts(mask, monkeypatch) -> None:
    """Of 1, 2 and 4 parts of a step, however they are dealt to ranks and micro-batches."""
    tree = {"data": {"train": "x", "num_frames": 4, "crop_px": 32, "global_batch": 4}, "masks": [mask] * 2}
    plan = config.validate({**tree, "model": NETWORKS, "optim": {"total_steps": 5}}, "test")
    method = built(plan)
    method.begin(torch.float32, 5)
    clips = torch.randint(256, (4, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for step in range(5):
        whole, *parts = (drawn_in(num, method, clips, step, monkeypatch) for num in (1, 2, 4))
        assert any((values == 0).any() for name, values in whole.items() if name.startswith("kept"))
        for part in parts:
            assert part.keys() == whole.keys()
            assert all(torch.equal(part[name], values) for name, values in whole.items())


@pytest.mark.fast
@pytest.mark.parametrize(("num_ranks", "accumulate"), [(1, 4), (2, 1), (2, 2), (4, 1)])
def test_clips_do_not_depend_on_the_number_of_parts(clips, num_ranks, accumulate) -> None:
    data = settings(clips, "unused").data
    whole = Reader(TrainPlan(open_sources(data), data, 3))
    parts = [Reader(TrainPlan(open_sources(data), data, 3, rank, num_ranks, accumulate)) for rank in range(num_ranks)]
    for step in range(6):
        numbers = range(step * accumulate, (step + 1) * accumulate)
        batches = [part[number] for part in parts for number in numbers]
        assert torch.equal(torch.cat([batch.video for batch in batches]), whole[step].video)


def cases() -> dict[str, config.Config]:
    """Every objective, and every backbone with the default one; of 2 clips in a step."""
    found = {name: backbone_settings(name, objective={"reversal": 0.5}) for name in MODELS}
    crops = {"clips_per_decode": 2, "global_batch": 4}
    found |= {
        f"objective {name}": backbone_settings("vit", objective=tree, data=crops) for name, tree in OBJECTIVES.items()
    }
    raster = [{"kind": "multiblock", "num_blocks": 2, "trim": "raster"}, {"kind": "tube", "ratio": 0.5}]
    spare = {
        **MODELS["vit"],
        "modality_embedding": True,
        "predictor": {"width": 24, "depth": 1, "heads": 2, "mask_tokens": 3},
    }
    found["spare weights"] = backbone_settings("vit", model=spare)
    return found | {"raster": found["vit"].model_copy(update={"masks": validated(raster)})}


def validated(masks: list[dict[str, Any]]) -> list[Any]:
    tree = {"data": {"train": "x", "num_frames": 4, "crop_px": 32}, "masks": masks, "optim": {"total_steps": 1}}
    return list(config.validate({**tree, "model": MODELS["vit"]}, "test").masks)


UNSHARED = {"resnet": "has no BatchNorm over all ranks", "energy": "cannot share a single number"}


def gradients(kinds: list[str], num_micro: int = 1) -> dict[str, dict[str, Tensor]]:
    """The gradient of the first step by case and parameter, on all ranks that there are."""
    found = {}
    with assemble(next(iter(cases().values()))) as team:
        for (name, case), kind in product(cases().items(), kinds):
            if kind == "fsdp2" and name in UNSHARED:
                with pytest.raises(UserError, match=f"parallel.kind: fsdp2 {UNSHARED[name]}.*; set ddp"):
                    kind_of(built(case), team, config.Parallel(kind="fsdp2"), torch.device("cpu"))
            elif num_micro == 1 or name != "resnet":
                found[f"{name} {kind}"] = gradient(case, team, kind, num_micro)
    return found


def gradient(case: config.Config, team: Team, kind: str, num_micro: int) -> dict[str, Tensor]:
    method, kept = built(case), {}
    spread = Spread(method, team, kind_of(method, team, config.Parallel(kind=kind), torch.device("cpu")))
    optimizer = make_optimizer(method, case.optim)
    step = TrainingStep(method, optimizer, case.optim, torch.float32, 3, spread=spread)
    optimizer.step = lambda: kept.update(  # type: ignore[method-assign]
        {key: whole(one.grad) for key, one in method.named_parameters() if one.grad is not None}
    )
    mine = clips_of(case).chunk(team.ranks.num)[team.ranks.rank]
    step(0, *map(batch_of, mine.chunk(num_micro)))
    learning = {key for key, one in method.named_parameters() if one.requires_grad}
    assert method.rests == (kept.keys() != learning), learning - kept.keys()
    return kept


def clips_of(case: config.Config) -> Tensor:
    shape = (case.data.global_batch, 3, *case.data.clip_size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def check_alike(found: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    """The whole gradient within 1e-5 of its norm, and no part of it another one."""
    assert found.keys() == expected.keys(), name
    apart = {key: float((found[key] - gradient).norm()) for key, gradient in expected.items()}
    sizes = {key: float(gradient.norm()) for key, gradient in expected.items()}
    largest = math.hypot(*sizes.values())
    assert math.hypot(*apart.values()) <= 1e-5 * largest, name
    assert all(apart[key] <= 1e-4 * max(size, 1e-3 * largest) for key, size in sizes.items()), name


def test_two_ranks_have_the_gradient_of_one_process() -> None:
    """Of every objective and backbone of the test tables, BatchNorm too; gloo's mean would be the sum."""
    alone, shared = gradients(["auto"]), on_ranks(2, gradients, ["ddp", "fsdp2"])
    assert shared[0].keys() == shared[1].keys() and len(shared[0]) == 2 * len(alone) - len(UNSHARED)
    for name, found in shared[0].items():
        check_alike(found, alone[f"{name.rsplit(' ', 1)[0]} auto"], name)
        assert all(torch.equal(gradient, shared[1][name][key]) for key, gradient in found.items()), name


def test_two_micro_batches_have_the_gradient_of_one_batch() -> None:
    """Terms that compare clips compare those of both (GradCache); BatchNorm cannot, and is refused."""
    whole_batch, parts = gradients(["auto"]), gradients(["auto"], 2)
    assert whole_batch.keys() - parts.keys() == {"resnet auto"}
    for name, found in parts.items():
        check_alike(found, whole_batch[name], name)
    with pytest.raises(UserError, match=r"parallel\.accumulate: BatchNorm measures the batch"):
        kind_of(built(cases()["resnet"]), Team(accumulate=2), config.Parallel(), torch.device("cpu"))


def bytes_of(kind: str) -> dict[str, int]:
    """Bytes of parameters, gradients and moments that this rank holds after a step."""
    case = backbone_settings("vit")
    with assemble(case) as team:
        method = built(case)
        spread = Spread(method, team, kind)  # type: ignore[arg-type]
        optimizer = make_optimizer(method, case.optim)
        step = TrainingStep(method, optimizer, case.optim, torch.float32, 3, spread=spread)
        size, seen = case.data.global_batch // team.ranks.num, {}
        update = optimizer.step

        def counted() -> None:
            update()
            moments = [one for kept in optimizer.state.values() for one in kept.values() if one.ndim]
            gradients = [one.grad for one in method.parameters() if one.grad is not None]
            for name, tensors in {
                "parameters": list(method.parameters()),
                "gradients": gradients,
                "moments": moments,
            }.items():
                seen[name] = sum(local(one).numel() * local(one).element_size() for one in tensors)

        optimizer.step = counted  # type: ignore[method-assign]
        step(0, batch_of(clips_of(case)[team.ranks.rank * size :][:size]))
    return seen


def test_a_rank_of_two_holds_half_of_what_is_sharded() -> None:
    whole = bytes_of("alone")
    assert set(whole) == {"parameters", "gradients", "moments"}
    for shard in on_ranks(2, bytes_of, "fsdp2"):
        assert all(shard[name] <= 0.55 * size for name, size in whole.items()), (shard, whole)
