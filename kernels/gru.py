"""A GRU layer's pass and its way back on a CPU (Sec. 3's R): nn.GRU's numbers, in about half its time.

With x_t the input, h_t the state and . the product element by element:

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r . (W_hn h + b_hn))     h' = n + z . (h - n)

What autograd does 16 times for 16 frames is done once: the products with x, and above all dW_hh, the sum over
t of the outer products of what flows back into the gates with h. Only the two products with W_hh itself
remain in the loops. A GPU keeps nn.GRU (cuDNN).
"""
import torch


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w_ih, w_hh, b_ih, b_hh):
        (B, T, _), H = x.shape, w_hh.shape[1]
        from_x = torch.addmm(b_ih, x.transpose(0, 1).flatten(0, 1), w_ih.t()).view(T, B, 3 * H)
        h = x.new_zeros(T + 1, B, H)  # h[t]: the state before frame t
        rz, n, hn = x.new_empty(T, B, 2 * H), x.new_empty(T, B, H), x.new_empty(T, B, H)
        for t in range(T):
            from_h = torch.addmm(b_hh, h[t], w_hh.t())
            torch.add(from_x[t, :, :2 * H], from_h[:, :2 * H], out=rz[t]).sigmoid_()
            hn[t] = from_h[:, 2 * H:]
            torch.addcmul(from_x[t, :, 2 * H:], rz[t, :, :H], hn[t], out=n[t]).tanh_()
            torch.lerp(n[t], h[t], rz[t, :, H:], out=h[t + 1])
        ctx.save_for_backward(x, w_ih, w_hh, h, rz, n, hn)
        return h[1:].transpose(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dh_out):
        x, w_ih, w_hh, h, rz, n, hn = ctx.saved_tensors
        (B, T, _), H = x.shape, w_hh.shape[1]
        r, z = rz.chunk(2, 2)
        to_n, to_z, to_r = (1 - z) * (1 - n * n), (h[:-1] - n) * z * (1 - z), hn * r * (1 - r)
        at_x, at_h = x.new_empty(T, B, 3 * H), x.new_empty(T, B, 3 * H)  # what reaches the gates' sums
        dh = x.new_zeros(B, H)
        for t in reversed(range(T)):
            dh = dh + dh_out[:, t]
            dn = dh * to_n[t]
            torch.mul(dn, to_r[t], out=at_x[t, :, :H])
            torch.mul(dh, to_z[t], out=at_x[t, :, H:2 * H])
            at_x[t, :, 2 * H:] = dn
            at_h[t] = at_x[t]
            at_h[t, :, 2 * H:] *= r[t]
            dh = torch.addmm(dh * z[t], at_h[t], w_hh)
        at_x, at_h, inputs = at_x.flatten(0, 1), at_h.flatten(0, 1), x.transpose(0, 1).flatten(0, 1)
        dx = (at_x @ w_ih).view(T, B, -1).transpose(0, 1)
        return dx, at_x.t() @ inputs, at_h.t() @ h[:-1].flatten(0, 1), at_x.sum(0), at_h.sum(0)


def gru(layer, x):
    """The states of a one-layer, batch-first nn.GRU from a zero state: x [B, T, D] -> [B, T, H]."""
    if x.device.type != "cpu":
        return layer(x)[0]
    return _GRU.apply(x, layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
