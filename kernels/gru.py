"""R's GRU layer (Sec. 3): the numbers of nn.GRU, on a CPU in about half its time.

With x_t the input, h_t the state and * the product element by element:

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))     h' = n + z * (h - n)

nn.GRU's autograd accumulates the weights' gradients once for each frame. Here the products with x, and dW_ih
and dW_hh, are a single product over all frames. A row may end early: its later frames cost nothing. A GPU
keeps nn.GRU, which is cuDNN there.
"""
import torch
import torch.nn as nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

class _GRU(torch.autograd.Function):
    """Packed sequences: x [P, D] has sizes[t] rows of each frame t, frame after frame -> states [P, H]."""

    @staticmethod
    def forward(ctx, x, w_ih, w_hh, b_ih, b_hh, sizes, dtype):
        H = w_hh.shape[1]
        x, w_ih, w_hh, from_bias = (v.to(dtype) for v in (x, w_ih, w_hh, b_hh))
        from_x = torch.addmm(b_ih.to(dtype), x, w_ih.t())
        before = x.new_empty(len(x), H)  # the states before each frame
        from_h = torch.empty_like(from_x)
        rz = b_ih.new_empty(len(x), 2 * H)
        n, h = b_ih.new_empty(2, len(x), H)
        state = h.new_zeros(sizes[0], H)
        frames = (v.split(sizes) for v in (from_x, before, from_h, rz, n, h))
        for from_x_t, before_t, from_h_t, rz_t, n_t, h_t in zip(*frames):
            state = state[:len(h_t)]  # the rows that go on
            before_t.copy_(state)
            torch.addmm(from_bias, before_t, w_hh.t(), out=from_h_t)
            torch.add(from_x_t[:, :2 * H], from_h_t[:, :2 * H], out=rz_t).sigmoid_()
            r, z = rz_t.chunk(2, 1)
            torch.addcmul(from_x_t[:, 2 * H:], r, from_h_t[:, 2 * H:], out=n_t).tanh_()
            state = torch.lerp(n_t, state, z, out=h_t)
        ctx.save_for_backward(x, w_ih, w_hh, before, from_h[:, 2 * H:], rz, n)
        ctx.sizes = sizes
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dh_out):
        x, w_ih, w_hh, before, hn, rz, n = ctx.saved_tensors  # hn: W_hn h + b_hn
        r, z = rz.chunk(2, 1)
        # Derivatives of h' by the sums in r, z and n, for all frames at once: [P, 3, H]. The sum in n has
        # W_in x as it is, and W_hn h times r.
        by_n = (1 - z) * (1 - n * n)
        by_z = (before - n) * z * (1 - z)
        by_r = by_n * hn * r * (1 - r)
        by_x = torch.stack([by_r, by_z, by_n], 1)
        by_h = torch.stack([by_r, by_z, by_n * r], 1)
        at_h = torch.empty_like(by_h, dtype=x.dtype)  # the gradients of W h + b
        dh = torch.empty_like(n)
        from_later = n.new_zeros(ctx.sizes[0], n.shape[1])  # dh that comes from the frame behind
        end = len(x)
        for size in reversed(ctx.sizes):
            t = slice(end - size, end)
            torch.add(dh_out[t], from_later[:size], out=dh[t])
            torch.mul(dh[t, None], by_h[t], out=at_h[t])
            torch.add(dh[t] * z[t], at_h[t].flatten(1) @ w_hh, out=from_later[:size])
            end -= size
        at_x = dh[:, None].mul(by_x).flatten(1)  # the gradients of W x + b
        at_h = at_h.flatten(1)
        db_ih = at_x.sum(0)
        db_hh = at_h.sum(0, dtype=n.dtype)
        at_x = at_x.to(x.dtype)
        products = (v.to(n.dtype) for v in (at_x @ w_ih, at_x.t() @ x, at_h.t() @ before))
        return *products, db_ih, db_hh, None, None

class GRU(nn.GRU):
    """A one-layer GRU from a zero state: x [B, T, D] float -> its states [B, T, hidden], as nn.GRU's.
    length int64 [B], from 1 to T: the states that are needed of each row. On a CPU the states behind them are
    zeros and cost nothing. bf16: where gradients are wanted, a CPU multiplies several rows in bfloat16;
    states stay as x is."""

    def __init__(self, D, hidden, bf16=False):
        super().__init__(D, hidden, batch_first=True)
        self.bf16 = bf16

    def forward(self, x, length=None):
        if x.device.type != "cpu":
            return super().forward(x)[0]
        B, T, _ = x.shape
        length = torch.full((B,), T) if length is None else length
        packed = pack_padded_sequence(x, length, batch_first=True, enforce_sorted=False)
        weights = self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0
        # A single row reads each weight once: converting the weights would take longer than it saves. Where
        # no gradient is wanted clips are drawn, and a clip shall not depend on the clips drawn beside it.
        bf16 = self.bf16 and B > 1 and torch.is_grad_enabled()
        dtype = torch.bfloat16 if bf16 else x.dtype
        states = _GRU.apply(packed.data, *weights, packed.batch_sizes.tolist(), dtype)
        return pad_packed_sequence(packed._replace(data=states), batch_first=True, total_length=T)[0]
