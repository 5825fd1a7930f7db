"""One pass over the clips gives every kind of features."""

import numpy as np
import pytest
import torch

from vjepa.data.augment import normalise
from vjepa.errors import UserError
from vjepa.probing.features import encode, extract, motion_energy, pixels
from vjepa.records import ClipBatch

pytestmark = pytest.mark.fast
CPU = torch.device("cpu")


class Tokens(torch.nn.Module):
    """An encoder of one token per frame: the mean colour through a linear map."""

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


def test_extract_keeps_order_and_names_failures():
    passes = []
    batches = [batch(0, 2), batch(0, 0, ((2, "broken"),)), batch(3, 1)]
    loader = (passes.append(1) or one for one in batches)
    found = extract(loader, {"trained": encode(Tokens(), CPU, torch.float32), "pixels": pixels})
    assert len(passes) == 3  # decoded once for both
    for features in found.values():
        assert features.clip_ids.tolist() == [0, 1, 3]
        assert features.failures == ((2, "broken"),)
        assert features.values.dtype == np.float32
    assert found["trained"].values.shape == (3, 5)


def test_extract_of_nothing_readable_is_one_line():
    with pytest.raises(UserError, match="row 2: broken"):
        extract([batch(0, 0, ((2, "broken"),))], {"pixels": pixels})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encode_is_the_mean_over_tokens(dtype):
    encoder, video = Tokens(), batch(0, 2).video
    expected = encoder(normalise(video, torch.float32)).mean(1)
    found = encode(encoder, CPU, dtype)(video)
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


def test_a_diverged_encoder_is_one_line():
    with pytest.raises(UserError, match=r"trained: .*diverged"):
        extract([batch(0, 2)], {"trained": lambda video: torch.full((len(video), 3), torch.nan)})
