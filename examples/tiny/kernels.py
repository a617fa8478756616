"""kernels.c as autograd functions, for model.py; `load()` is None where it cannot be compiled."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor


@functools.cache
def load(key_dim: int, value_dim: int) -> ctypes.CDLL | None:
    """The compiled library for these DeltaNet head dims, built once per process into a temporary
    folder."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    out = Path(tempfile.mkdtemp(prefix="tiny-kernels-")) / "kernels.so"
    source = Path(__file__).with_name("kernels.c")
    flags = "-O3 -march=native -mprefer-vector-width=512 -ffast-math -fopenmp -fPIC -shared".split()
    dims = [f"-DDK={key_dim}", f"-DDV={value_dim}"]
    command = [compiler, *flags, *dims, str(source), "-o", str(out), "-lm"]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    return ctypes.CDLL(str(out))


def call(function, *args: Tensor | int | float) -> None:
    """Call a kernel: tensors as pointers, integers as int64, floats as float."""
    kinds = {int: ctypes.c_int64, float: ctypes.c_float}
    function(
        *(
            ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else kinds[type(a)](a)
            for a in args
        )
    )


class Norm(torch.autograd.Function):
    """RMS norm with 1 + weight, f32 in, bf16 out."""

    @staticmethod
    def forward(ctx, lib, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x, dtype=torch.bfloat16)
        D = x.shape[-1]
        call(lib.norm_forward, y, x, weight, eps, x.numel() // D, D)
        ctx.save_for_backward(x, weight)
        ctx.lib, ctx.eps = lib, eps
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        dx, dw, D = torch.empty_like(x), torch.zeros_like(weight), x.shape[-1]
        dy = dy.to(torch.bfloat16).contiguous()
        call(ctx.lib.norm_backward, dx, dw, dy, x, weight, ctx.eps, x.numel() // D, D)
        return None, dx, dw, None


class SwiGLU(torch.autograd.Function):
    """silu(first half) * second half, bf16."""

    @staticmethod
    def forward(ctx, lib, x: Tensor) -> Tensor:
        F = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], F)
        call(lib.swiglu_forward, y, x, y.numel() // F, F)
        ctx.save_for_backward(x)
        ctx.lib = lib
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        dx, F = torch.empty_like(x), x.shape[-1] // 2
        call(ctx.lib.swiglu_backward, dx, dy.contiguous(), x, dy.numel() // F, F)
        return None, dx


class Mixer(torch.autograd.Function):
    """DeltaNet between its projections: convolution, gates, delta rule, gated norm.

    y [B, T, qkv + z + b + a] bf16 -> [B, T, Hv * Dv] bf16.
    """

    @staticmethod
    def forward(ctx, lib, y: Tensor, conv: Tensor, A_log: Tensor, dt_bias: Tensor, norm: Tensor,
                eps: float, Hk: int) -> Tensor:  # fmt: skip
        B, T, width = y.shape
        Hv, Dv, C = A_log.shape[0], norm.shape[0], conv.shape[0]
        taps = conv[:, 0].T.contiguous()
        x = torch.empty(B, T, C)
        call(lib.conv_forward, x, y, width, taps, B, T, C)
        b, a = y[..., -2 * Hv :].float().split(Hv, -1)
        beta = b.sigmoid()
        pre = a + dt_bias
        g = -A_log.exp() * torch.nn.functional.softplus(pre)
        o, saved = (
            torch.empty(B, T, Hv, Dv),
            torch.empty(B, Hv, -(-T // 16), (C - Hv * Dv) // (2 * Hk) * Dv),
        )
        call(lib.delta_forward, o, saved, x, g, beta, B, T, Hk, Hv)
        out = y.new_empty(B, T, Hv * Dv)
        z = y[..., C:]
        call(lib.gated_forward, out, o, z, width, norm, eps, B * T, Hv)
        ctx.save_for_backward(y, taps, x, beta, pre, g, o, saved, A_log, norm)
        ctx.lib, ctx.eps, ctx.Hk = lib, eps, Hk
        return out

    @staticmethod
    def backward(ctx, dout: Tensor) -> tuple:
        y, taps, x, beta, pre, g, o, saved, A_log, norm = ctx.saved_tensors
        lib, (B, T, width), (Hv, Dv), C = ctx.lib, y.shape, o.shape[2:], taps.shape[1]
        dy, dz, do = torch.empty_like(y), y.new_empty(B, T, Hv * Dv), torch.empty_like(o)
        dnorm, dtaps, dx = torch.zeros_like(norm), torch.zeros_like(taps), torch.zeros_like(x)
        z = y[..., C:]
        call(
            lib.gated_backward,
            do,
            dz,
            dnorm,
            dout.contiguous(),
            o,
            z,
            width,
            norm,
            ctx.eps,
            B * T,
            Hv,
        )
        dg, dbeta = torch.empty_like(g), torch.empty_like(beta)
        call(lib.delta_backward, dx, dg, dbeta, do, saved, x, g, beta, B, T, ctx.Hk, Hv)
        call(lib.conv_backward, dy, dtaps, dx, y, width, taps, B, T, C)
        da = dg * -A_log.exp() * pre.sigmoid()
        dy[..., C : C + Hv * Dv] = dz
        dy[..., -2 * Hv :] = torch.cat([dbeta * beta * (1 - beta), da], -1)
        dA_log, ddt = (dg * g).sum((0, 1)), da.sum((0, 1))
        return None, dy, dtaps.T[:, None].contiguous(), dA_log, ddt, dnorm, None, None
