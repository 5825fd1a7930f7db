"""A method spread over the ranks of a team: by PyTorch's DDP, or by FSDP2, where each rank holds a share of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from vjepa import config
from vjepa.errors import UserError
from vjepa.models.layers import Block
from vjepa.models.norms import has_batch_norms, share_batch_norms
from vjepa.training.team import Team

try:  # the first step of an optimizer imports all of it anyway
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # PyTorch before 2.6
    fully_shard = None  # type: ignore[assignment]

Kind = Literal["alone", "ddp", "fsdp2"]
_SHARDS_SINCE: Final = (2, 9)  # version of PyTorch whose FSDP2 runs on a CPU and on GPUs alike
_BYTES: Final = 4  # of a number in fp32: weight; of what is trained, gradient and two moments beside
ResultT = TypeVar("ResultT")


def kind_of(method: nn.Module, team: Team, wanted: config.Parallel, device: torch.device) -> Kind:
    """Choose how a method is spread. Raises UserError for what this PyTorch, or this network, cannot do."""
    if team.accumulate > 1 and has_batch_norms(method):
        raise UserError(
            "parallel.accumulate: BatchNorm measures the batch, of which micro-batches show a part; set 1, or another "
            "model.backbone"
        )
    if team.ranks.num == 1:
        return "alone"
    problem = _why_no_shards(method)
    if wanted.kind == "fsdp2" and problem:
        raise UserError(f"parallel.kind: fsdp2 {problem}; set ddp")
    if wanted.kind != "auto":
        return wanted.kind
    needed = sum(_BYTES * weight.numel() * (4 if weight.requires_grad else 1) for weight in method.parameters())
    is_gpu = device.type == "cuda"
    there = torch.cuda.get_device_properties(device).total_memory if is_gpu else math.inf
    return "fsdp2" if 2 * needed > there and not problem else "ddp"


def _why_no_shards(method: nn.Module) -> str | None:
    """Say what FSDP2 lacks for a method; None: nothing."""
    if fully_shard is None or _version() < _SHARDS_SINCE:
        return f"needs PyTorch {'.'.join(map(str, _SHARDS_SINCE))}, and this is {torch.__version__}"
    if has_batch_norms(method):
        return "has no BatchNorm over all ranks"
    if single := next((name for name, weight in method.named_parameters() if weight.ndim == 0), None):
        return f"cannot share a single number, which {single} is"
    return None


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


class Spread:
    """Ask a method through here what has to do with its weights: `spread(method.terms, batch, step)`.

    DDP and FSDP2 take note of forward passes of modules alone, and `terms`, `observe` or a probe are none.
    """

    def __init__(
        self,
        method: nn.Module,
        team: Team = Team(),  # noqa: B008 - it is frozen
        kind: Kind = "alone",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Spread a method whose weights are the same on all ranks; its parameters are others from here on.

        dtype: of matrix products. Make the optimizer afterwards.
        """
        self.method, self.team, self.kind = method, team, kind
        entrance = _Entrance(method)
        self.module: nn.Module = entrance
        if kind == "ddp":
            share_batch_norms(method, cast(Any, team.devices))
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # convolutions by depth
            self.module = DistributedDataParallel(
                entrance,
                process_group=team.devices,
                find_unused_parameters=getattr(method, "rests", True),
                gradient_as_bucket_view=True,
            )
        elif kind == "fsdp2":
            _shard(entrance, team, dtype)
            self(lambda: None)  # the first pass has to be through the root, and a probe of the untrained is not
            self.rest()

    def __call__(self, call: Callable[..., ResultT], *arguments: Any) -> ResultT:
        found: ResultT = self.module(call, *arguments)
        return found

    def apart(self, is_last: bool) -> AbstractContextManager[Any]:
        """Have a micro-batch add to the gradients here; those of the ranks meet after the last one.

        Shards meet each time: whole gradients would take the memory that they are for.
        """
        is_ddp = isinstance(self.module, DistributedDataParallel)
        return self.module.no_sync() if is_ddp and not is_last else nullcontext()  # type: ignore[operator]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Hold whole weights on every rank for a while, so that each may pass over other clips than the others."""
        shards = self._shards()
        for shard in shards:
            shard.set_reshard_after_forward(False, recurse=False)
            shard.unshard()
        try:
            yield
        finally:
            for shard in shards:
                shard.set_reshard_after_forward(shard is not self.module, recurse=False)
                shard.reshard()

    def rest(self) -> None:
        """Hold shards alone again: what no backward pass has used is whole since the forward pass (#144289)."""
        for shard in self._shards():
            shard.reshard()

    def _shards(self) -> list[Any]:
        return [module for module in self.module.modules() if self.kind == "fsdp2" and isinstance(module, FSDPModule)]


class _Entrance(nn.Module):
    """Pass calls on, as a forward pass."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, call: Callable[..., ResultT], *arguments: Any) -> ResultT:
        return call(*arguments)


def _shard(entrance: nn.Module, team: Team, dtype: torch.dtype) -> None:
    """Shard each block, then all that is in none (torchtitan's order); blocks compute in `dtype`, sums are fp32."""
    mesh = DeviceMesh.from_group(cast(Any, team.devices), team.device)
    policy = MixedPrecisionPolicy(None if dtype is torch.float32 else dtype, torch.float32)
    for block in [module for module in entrance.modules() if isinstance(module, Block)]:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(entrance, mesh=mesh)
    for shard in entrance.modules():
        if isinstance(shard, FSDPModule) and team.device == "cpu":
            shard.set_force_sum_reduction_for_comms(True)  # gloo's AVG gives the sum (pytorch/pytorch#162338)


def is_shard(tensor: Tensor) -> bool:
    """Tell whether a rank holds a share of this tensor alone."""
    return fully_shard is not None and isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Give all values of a tensor, which may be spread over the ranks: all of them have to come here then."""
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def spread_like(values: Tensor, tensor: Tensor) -> Tensor:
    """Give the share of `values`, the same on every rank, that this one holds of `tensor`; all without shards."""
    if not is_shard(tensor):
        return values
    placed = values.to(tensor.device)
    return distribute_tensor(placed, tensor.device_mesh, tensor.placements, src_data_rank=None)  # type: ignore[attr-defined]
