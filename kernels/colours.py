"""G's last layer: the numbers of nn.ConvTranspose2d(c, 3, 4, 2, 1), on a CPU in 3/4 of its time.

That is forward and backward, for 32 frames in bf16; forward alone takes half. A CPU makes the channels of a
transposed convolution in blocks, with AVX-512 of sixteen, so three colours cost as much as sixteen.

The layer doubles the side of x. Around each corner p between pixels of x lie 2 x 2 new pixels, and they
depend on the 2 x 2 pixels of x that meet there. For rows, and for columns in the same way:

    new row 2 p - 1 + a = sum over d of row p - 1 + d of x, times tap 2 (1 - d) + a         a, d: 0 or 1

So a convolution of 2 x 2 with 4 * 3 channels makes the new pixels of every corner, and pixel_shuffle puts
them in their places. A GPU keeps nn.ConvTranspose2d, which is cuDNN there.
"""
import torch.nn as nn
import torch.nn.functional as F

class ToColours(nn.ConvTranspose2d):
    """x [M, c, H, W] float -> colours [M, 3, 2 H, 2 W], of x's dtype. weight [c, 3, 4, 4], bias [3]."""

    def __init__(self, c):
        super().__init__(c, 3, 4, 2, 1)

    def forward(self, x):
        if x.device.type != "cpu":
            return super().forward(x)
        taps = self.weight.unflatten(3, (2, 2)).unflatten(2, (2, 2))  # (c, 3, 1 - d, a, 1 - e, b)
        taps = taps.flip(2, 4).permute(1, 3, 5, 0, 2, 4)  # (3, a, b, c, d, e)
        corners = F.conv2d(x, taps.flatten(0, 2), self.bias.repeat_interleave(4), padding=1)
        return F.pixel_shuffle(corners, 2)[:, :, 1:-1, 1:-1]  # the edge's corners are half outside
