"""One pass over the clips gives every kind of features."""

import numpy as np
import pytest
import torch

from vjepa.data.augment import normalise
from vjepa.data.plan_rows import Views
from vjepa.errors import UserError
from vjepa.probing.banks import Extractor, InMemory, SampleViews
from vjepa.probing.extractors import Readout, encoder_extractor, motion_energy, pixels, plain_extractor
from vjepa.records import ClipBatch

pytestmark = pytest.mark.fast
CPU = torch.device("cpu")


class Tokens(torch.nn.Module):
    """An encoder of one token per frame: the mean colour through a linear map."""

    depth = 1

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.map = torch.nn.Linear(3, 5)

    def forward(self, video):
        return self.map(video.mean((3, 4)).transpose(1, 2))


def batch(first, num, failures=()):
    video = torch.randint(
        0, 256, (num, 3, 4, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(first)
    )
    return ClipBatch(video, torch.arange(first, first + num), failures)


class Samples:
    """Batches as clips are read from a source."""

    def __init__(self, *batches):
        self.batches, self.passes = batches, 0

    def loader(self, clip_ids, views, batch):
        for one in self.batches:
            self.passes += 1
            yield one


def in_memory(samples, extractors):
    return InMemory().banks(SampleViews(samples, np.arange(9), Views()), extractors, 4)


def readout(dtype=torch.float32):
    return Readout((0,), ("pooled",), CPU, dtype)


def test_one_pass_in_memory_keeps_order_and_names_failures():
    samples = Samples(batch(0, 2), batch(0, 0, ((2, "broken"),)), batch(3, 1))
    found = in_memory(
        samples, {"trained": encoder_extractor(Tokens(), "", readout()), "pixels": plain_extractor("pixels")}
    )
    assert samples.passes == 3  # decoded once for both
    for outputs in found.values():
        bank = outputs["pooled"]
        assert bank.clip_ids.tolist() == [0, 1, 3] and bank.failures == ((2, "broken"),)
        assert bank.values.dtype is torch.float16
    assert found["trained"]["pooled"].values.shape == (3, 1, 1, 5)


def test_nothing_readable_is_one_line():
    with pytest.raises(UserError, match="row 2: broken"):
        in_memory(Samples(batch(0, 0, ((2, "broken"),))), {"pixels": plain_extractor("pixels")})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num", [2, 37])  # a CPU takes a few at a time
def test_an_encoder_is_read_as_the_mean_over_tokens(dtype, num):
    encoder, video = Tokens(), batch(0, num).video
    expected = encoder(normalise(video, torch.float32)).mean(1)
    found = encoder_extractor(encoder, "", readout(dtype)).run(video, torch.arange(num))["pooled"][:, 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.detach(), atol=1e-6 if dtype is torch.float32 else 0.02, rtol=0)


def test_pixels_shrink_large_frames_and_leave_small_ones():
    assert pixels(batch(0, 2).video).shape == (2, 4 * 3 * 32 * 32)
    small = batch(0, 2).video[..., :16, :16]
    assert torch.equal(pixels(small), small.transpose(1, 2).flatten(1) / 255)


def test_motion_energy_sees_change_alone():
    still = batch(0, 2).video[:, :, :1].repeat(1, 1, 4, 1, 1)
    assert motion_energy(still).shape == (2, 3 * 32 * 32)
    assert not motion_energy(still).any()
    assert motion_energy(batch(0, 2).video).any()
    assert motion_energy(still[:, :, :1]).shape == (2, 1)


def constant(value):
    return Extractor({}, ("pooled",), lambda video, clip_ids: {"pooled": torch.full((len(video), 1, 3), value)})


def test_a_diverged_encoder_is_one_line_and_large_features_are_kept():
    with pytest.raises(UserError, match=r"trained: .*diverged"):
        in_memory(Samples(batch(0, 2)), {"trained": constant(torch.nan)})
    large = in_memory(Samples(batch(0, 2)), {"trained": constant(1e5)})["trained"]["pooled"].values
    assert large.dtype is torch.bfloat16 and large.float().flatten().tolist() == pytest.approx([1e5] * 6, rel=0.01)
