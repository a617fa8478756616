/* Training kernels for model.py: forward and gradient of what torch does in many small passes on a CPU.
 *
 * Built by kernels.py with -DDK= -DDV= (head dims) into a shared library; model.py has the same mathematics in
 * plain torch and runs it where there is no compiler. Rows are tokens, N = B * T of them. Matrix products stay
 * in torch. Gradients of weights are summed in one buffer per thread, then added up.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SPAN 16 /* tokens between stored states of the delta rule */

typedef uint16_t bf16;

static inline float up(bf16 x) {
    union { uint32_t u; float f; } v = {.u = (uint32_t)x << 16};
    return v.f;
}

static inline bf16 down(float x) {
    union { float f; uint32_t u; } v = {.f = x};
    return (bf16)((v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16);
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* y = x * rsqrt(mean(x^2) + eps) * (1 + w); x [N, D] f32, y [N, D] bf16 */
void norm_forward(bf16 *y, const float *x, const float *w, float eps, int64_t N, int64_t D) {
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        const float *xn = x + n * D;
        float sum = 0;
        for (int64_t i = 0; i < D; i++) sum += xn[i] * xn[i];
        float r = 1.0f / sqrtf(sum / D + eps);
        for (int64_t i = 0; i < D; i++) y[n * D + i] = down(xn[i] * r * (1 + w[i]));
    }
}

/* dx [N, D], dw [D] += */
void norm_backward(float *dx, float *dw, const bf16 *dy, const float *x, const float *w, float eps, int64_t N,
                   int64_t D) {
#pragma omp parallel
    {
        float *local = calloc((size_t)D, sizeof(float));
#pragma omp for
        for (int64_t n = 0; n < N; n++) {
            const float *xn = x + n * D;
            float sum = 0, dot = 0;
            for (int64_t i = 0; i < D; i++) {
                sum += xn[i] * xn[i];
                dot += up(dy[n * D + i]) * (1 + w[i]) * xn[i];
            }
            float r = 1.0f / sqrtf(sum / D + eps), c = dot * r * r / D;
            for (int64_t i = 0; i < D; i++) {
                float g = up(dy[n * D + i]);
                dx[n * D + i] = r * (g * (1 + w[i]) - xn[i] * c);
                local[i] += g * xn[i] * r;
            }
        }
#pragma omp critical
        for (int64_t i = 0; i < D; i++) dw[i] += local[i];
        free(local);
    }
}

/* y = silu(x[:, :F]) * x[:, F:]; x [N, 2F], y [N, F] */
void swiglu_forward(bf16 *y, const bf16 *x, int64_t N, int64_t F) {
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++)
        for (int64_t i = 0; i < F; i++) {
            float a = up(x[n * 2 * F + i]);
            y[n * F + i] = down(a * sigmoid(a) * up(x[n * 2 * F + F + i]));
        }
}

void swiglu_backward(bf16 *dx, const bf16 *dy, const bf16 *x, int64_t N, int64_t F) {
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++)
        for (int64_t i = 0; i < F; i++) {
            float a = up(x[n * 2 * F + i]), b = up(x[n * 2 * F + F + i]), g = up(dy[n * F + i]), s = sigmoid(a);
            dx[n * 2 * F + i] = down(g * b * s * (1 + a * (1 - s)));
            dx[n * 2 * F + F + i] = down(g * a * s);
        }
}

/* y[t] = silu(sum_k w[k] x[t - 3 + k]); x rows of `stride`, first C used; w [4, C]; y [B, T, C] f32 */
void conv_forward(float *y, const bf16 *x, int64_t stride, const float *w, int64_t B, int64_t T, int64_t C) {
#pragma omp parallel for
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < T; t++) {
            float *yt = y + (b * T + t) * C;
            memset(yt, 0, sizeof(float) * (size_t)C);
            for (int64_t k = t < 3 ? 3 - t : 0; k < 4; k++) {
                const bf16 *xt = x + (b * T + t - 3 + k) * stride;
                for (int64_t c = 0; c < C; c++) yt[c] += w[k * C + c] * up(xt[c]);
            }
            for (int64_t c = 0; c < C; c++) yt[c] *= sigmoid(yt[c]);
        }
}

/* dx rows of `stride` written in their first C; dw [4, C] += */
void conv_backward(bf16 *dx, float *dw, const float *dy, const bf16 *x, int64_t stride, const float *w, int64_t B,
                   int64_t T, int64_t C) {
#pragma omp parallel
    {
        float *local = calloc((size_t)(4 * C), sizeof(float));
        float *ring = malloc((size_t)(4 * C) * sizeof(float)); /* gradients of tokens t .. t+3 so far */
        float *pre = malloc((size_t)C * sizeof(float));
#pragma omp for
        for (int64_t b = 0; b < B; b++) {
            memset(ring, 0, (size_t)(4 * C) * sizeof(float));
            for (int64_t t = T - 1; t >= 0; t--) {
                const float *gt = dy + (b * T + t) * C;
                int64_t first = t < 3 ? 3 - t : 0;
                memset(pre, 0, (size_t)C * sizeof(float));
                for (int64_t k = first; k < 4; k++) {
                    const bf16 *xt = x + (b * T + t - 3 + k) * stride;
                    for (int64_t c = 0; c < C; c++) pre[c] += w[k * C + c] * up(xt[c]);
                }
                for (int64_t c = 0; c < C; c++) {
                    float s = sigmoid(pre[c]);
                    pre[c] = gt[c] * s * (1 + pre[c] * (1 - s));
                }
                for (int64_t k = first; k < 4; k++) {
                    const bf16 *xt = x + (b * T + t - 3 + k) * stride;
                    float *acc = ring + ((t + 1 + k) & 3) * C, *lk = local + k * C;
                    for (int64_t c = 0; c < C; c++) {
                        acc[c] += w[k * C + c] * pre[c];
                        lk[c] += up(xt[c]) * pre[c];
                    }
                }
                float *done = ring + (t & 3) * C;
                bf16 *out = dx + (b * T + t) * stride;
                for (int64_t c = 0; c < C; c++) out[c] = down(done[c]);
                memset(done, 0, (size_t)C * sizeof(float));
            }
        }
#pragma omp critical
        for (int64_t i = 0; i < 4 * C; i++) dw[i] += local[i];
        free(local), free(ring), free(pre);
    }
}

/* y = x * rsqrt(mean(x^2) + eps) * w * silu(z) per head; x [N, H, DV] f32, z rows of `stride`, y [N, H * DV] bf16 */
void gated_forward(bf16 *y, const float *x, const bf16 *z, int64_t stride, const float *w, float eps, int64_t N,
                   int64_t H) {
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++)
        for (int64_t h = 0; h < H; h++) {
            const float *xh = x + (n * H + h) * DV;
            const bf16 *zh = z + n * stride + h * DV;
            float sum = 0;
            for (int i = 0; i < DV; i++) sum += xh[i] * xh[i];
            float r = 1.0f / sqrtf(sum / DV + eps);
            for (int i = 0; i < DV; i++) {
                float a = up(zh[i]);
                y[(n * H + h) * DV + i] = down(xh[i] * r * w[i] * a * sigmoid(a));
            }
        }
}

/* dx [N, H, DV] f32, dz [N, H * DV] bf16, dw [DV] += */
void gated_backward(float *dx, bf16 *dz, float *dw, const bf16 *dy, const float *x, const bf16 *z, int64_t stride,
                    const float *w, float eps, int64_t N, int64_t H) {
#pragma omp parallel
    {
        float local[DV] = {0};
#pragma omp for
        for (int64_t n = 0; n < N; n++)
            for (int64_t h = 0; h < H; h++) {
                const int64_t at = (n * H + h) * DV;
                const float *xh = x + at;
                const bf16 *zh = z + n * stride + h * DV;
                float sum = 0, dot = 0, g[DV];
                for (int i = 0; i < DV; i++) sum += xh[i] * xh[i];
                float r = 1.0f / sqrtf(sum / DV + eps);
                for (int i = 0; i < DV; i++) {
                    float a = up(zh[i]), s = sigmoid(a), d = up(dy[at + i]), hat = xh[i] * r;
                    g[i] = d * a * s; /* gradient at hat * w */
                    dz[at + i] = down(d * hat * w[i] * s * (1 + a * (1 - s)));
                    local[i] += g[i] * hat;
                    g[i] *= w[i];
                    dot += g[i] * xh[i];
                }
                float c = dot * r * r / DV;
                for (int i = 0; i < DV; i++) dx[at + i] = r * (g[i] - xh[i] * c);
            }
#pragma omp critical
        for (int i = 0; i < DV; i++) dw[i] += local[i];
    }
}

static inline float unit(float *hat, const float *x) {
    float sum = 0;
    for (int i = 0; i < DK; i++) sum += x[i] * x[i];
    float r = 1.0f / sqrtf(sum + 1e-6f);
    for (int i = 0; i < DK; i++) hat[i] = x[i] * r;
    return r;
}

/* S = a S + k d^T with d = beta (v - a S^T k) */
static inline void advance(float S[DK][DV], float *d, const float *k, const float *v, float a, float beta) {
    float m[DV] = {0};
    for (int i = 0; i < DK; i++)
        for (int j = 0; j < DV; j++) {
            S[i][j] *= a;
            m[j] += k[i] * S[i][j];
        }
    for (int j = 0; j < DV; j++) d[j] = beta * (v[j] - m[j]);
    for (int i = 0; i < DK; i++)
        for (int j = 0; j < DV; j++) S[i][j] += k[i] * d[j];
}

/* Gated delta rule. x [B, T, 2 Hk DK + Hv DV] holds q, k, v; g, beta [B, T, Hv]; o [B, T, Hv, DV];
 * saved [B, Hv, ceil(T / SPAN), DK, DV] takes the state before every SPAN-th token. */
void delta_forward(float *o, float *saved, const float *x, const float *g, const float *beta, int64_t B, int64_t T,
                   int64_t Hk, int64_t Hv) {
    const int64_t C = 2 * Hk * DK + Hv * DV, spans = (T + SPAN - 1) / SPAN;
    const float scale = 1.0f / sqrtf(DK);
#pragma omp parallel for collapse(2)
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < Hv; h++) {
            float S[DK][DV] __attribute__((aligned(64))) = {{0}};
            float q[DK], k[DK], d[DV];
            const int64_t hk = h / (Hv / Hk);
            for (int64_t t = 0; t < T; t++) {
                const float *xt = x + (b * T + t) * C;
                const int64_t gate = (b * T + t) * Hv + h;
                if (t % SPAN == 0) memcpy(saved + ((b * Hv + h) * spans + t / SPAN) * DK * DV, S, sizeof S);
                unit(q, xt + hk * DK);
                unit(k, xt + (Hk + hk) * DK);
                advance(S, d, k, xt + 2 * Hk * DK + h * DV, expf(g[gate]), beta[gate]);
                float out[DV] = {0};
                for (int i = 0; i < DK; i++)
                    for (int j = 0; j < DV; j++) out[j] += q[i] * S[i][j];
                for (int j = 0; j < DV; j++) o[gate * DV + j] = out[j] * scale;
            }
        }
}

/* dx as x (zeroed by the caller), dg and dbeta [B, T, Hv] */
void delta_backward(float *dx, float *dg, float *dbeta, const float *dout, const float *saved, const float *x,
                    const float *g, const float *beta, int64_t B, int64_t T, int64_t Hk, int64_t Hv) {
    const int64_t C = 2 * Hk * DK + Hv * DV, spans = (T + SPAN - 1) / SPAN, group = Hv / Hk;
    const float scale = 1.0f / sqrtf(DK);
#pragma omp parallel
    {
        float(*states)[DK][DV] = aligned_alloc(64, sizeof(float[SPAN][DK][DV]));
#pragma omp for collapse(2)
        for (int64_t b = 0; b < B; b++)
            for (int64_t hk = 0; hk < Hk; hk++)
                for (int64_t h = hk * group; h < (hk + 1) * group; h++) {
                    float dS[DK][DV] __attribute__((aligned(64))) = {{0}};
                    float S[DK][DV] __attribute__((aligned(64)));
                    float k[SPAN][DK], d[SPAN][DV], rk[SPAN];
                    for (int64_t s = spans - 1; s >= 0; s--) {
                        const int64_t from = s * SPAN, to = from + SPAN < T ? from + SPAN : T;
                        memcpy(S, saved + ((b * Hv + h) * spans + s) * DK * DV, sizeof S);
                        for (int64_t t = from; t < to; t++) {
                            const float *xt = x + (b * T + t) * C;
                            const int64_t gate = (b * T + t) * Hv + h, u = t - from;
                            rk[u] = unit(k[u], xt + (Hk + hk) * DK);
                            advance(S, d[u], k[u], xt + 2 * Hk * DK + h * DV, expf(g[gate]), beta[gate]);
                            memcpy(states[u], S, sizeof S);
                        }
                        for (int64_t t = to - 1; t >= from; t--) {
                            const int64_t u = t - from, gate = (b * T + t) * Hv + h;
                            float *dxt = dx + (b * T + t) * C;
                            const float *do_ = dout + gate * DV;
                            float q[DK], dq[DK], dk[DK], dd[DV] = {0}, dm[DV];
                            const float rq = unit(q, x + (b * T + t) * C + hk * DK), *ku = k[u], *du = d[u];
                            float(*St)[DV] = states[u];
                            for (int i = 0; i < DK; i++) {
                                float a = 0, c = 0, qi = q[i] * scale;
                                for (int j = 0; j < DV; j++) {
                                    dS[i][j] += qi * do_[j];
                                    a += St[i][j] * do_[j];
                                    c += dS[i][j] * du[j];
                                    dd[j] += ku[i] * dS[i][j];
                                }
                                dq[i] = a * scale;
                                dk[i] = c;
                            }
                            float db = 0;
                            for (int j = 0; j < DV; j++) {
                                db += dd[j] * du[j];
                                dm[j] = -beta[gate] * dd[j];
                                dxt[2 * Hk * DK + h * DV + j] = -dm[j];
                            }
                            dbeta[gate] = db / (beta[gate] + 1e-20f); /* d = beta (v - m) */
                            float decay = expf(g[gate]), dgate = 0;
                            for (int i = 0; i < DK; i++) {
                                float c = 0;
                                for (int j = 0; j < DV; j++) {
                                    float before = St[i][j] - ku[i] * du[j]; /* a S_(t-1) */
                                    float grad = dS[i][j] + ku[i] * dm[j];
                                    c += before * dm[j];
                                    dgate += grad * before;
                                    dS[i][j] = grad * decay;
                                }
                                dk[i] += c;
                            }
                            dg[gate] = dgate;
                            float dotq = 0, dotk = 0;
                            for (int i = 0; i < DK; i++) dotq += q[i] * dq[i], dotk += ku[i] * dk[i];
                            for (int i = 0; i < DK; i++) {
                                dxt[hk * DK + i] += rq * (dq[i] - q[i] * dotq);
                                dxt[(Hk + hk) * DK + i] += rk[u] * (dk[i] - ku[i] * dotk);
                            }
                        }
                    }
                }
        free(states);
    }
}
