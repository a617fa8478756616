/* simd.inl: dot, mix, delta, and what takes exponentials, written once for every vector width.
 *
 * What the including target defines:
 *
 *   NAME(op)                       its own name of a function
 *   LANES, V                       width and type of a vector
 *   vzero vset vload vstore        of whole vectors
 *   vload_n vstore_n               of the first n < LANES lanes; the others read as 0
 *   vfma(a, b, c)                  a b + c; vmul, vadd, vsub, vdiv, vmin, vmax likewise
 *   vpower(a, t)                   a 2^n, n held in the low bits of t
 *   vlargest(v)                    of the lanes
 *   vsum(v), vsum4(a, b, c, d)     sums of lanes, of one and of four vectors, in the same order
 *   store_sums(y, add, s)          y[i] = (add ? y[i] : 0) + s[i], i < 4, s of vsum4
 *   vload_as, vload_as_n           elements of a storage type as f32
 *   DOT_TOKENS                     with DOT_ROWS the register tile of dot
 *   MIX_TOKENS, MIX_VECTORS        the register tile of mix */
#define ALWAYS static inline __attribute__((always_inline))

/* ---- dot: R rows of w against T tokens, all products of a tile kept in registers ---- */

#define DOT_ROWS 4 /* whose four sums are one store */

ALWAYS void dot_tile(float *y, size_t ldy, const void *w, size_t w0, size_t ldw, const float *x,
                     size_t ldx, size_t n, int add, const q35_dtype dtype, const int R,
                     const int T) {
    V acc[DOT_ROWS][DOT_TOKENS];
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) acc[r][t] = vzero();
    size_t k = 0;
    for (; k + LANES <= n; k += LANES) {
        V xv[DOT_TOKENS];
        for (int t = 0; t < T; t++) xv[t] = vload(x + (size_t)t * ldx + k);
        for (int r = 0; r < R; r++) {
            V wv = vload_as(w, w0 + (size_t)r * ldw + k, dtype);
            for (int t = 0; t < T; t++) acc[r][t] = vfma(wv, xv[t], acc[r][t]);
        }
    }
    if (k < n) {
        for (int r = 0; r < R; r++) {
            V wv = vload_as_n(w, w0 + (size_t)r * ldw + k, n - k, dtype);
            for (int t = 0; t < T; t++)
                acc[r][t] = vfma(wv, vload_n(x + (size_t)t * ldx + k, n - k), acc[r][t]);
        }
    }
    for (int t = 0; t < T; t++) {
        float *out = y + (size_t)t * ldy;
        if (R == 4) {
            store_sums(out, add, vsum4(acc[0][t], acc[1][t], acc[2][t], acc[3][t]));
            continue;
        }
        for (int r = 0; r < R; r++) out[r] = add ? out[r] + vsum(acc[r][t]) : vsum(acc[r][t]);
    }
}

ALWAYS void dot_rows(float *y, size_t ldy, const void *w, size_t ldw, const float *x, size_t ldx,
                     size_t rows, size_t n, int add, const q35_dtype dtype, const int T) {
    size_t r = 0;
    for (; r + DOT_ROWS <= rows; r += DOT_ROWS)
        dot_tile(y + r, ldy, w, r * ldw, ldw, x, ldx, n, add, dtype, DOT_ROWS, T);
    for (; r < rows; r++) dot_tile(y + r, ldy, w, r * ldw, ldw, x, ldx, n, add, dtype, 1, T);
}

/* Tokens that stand alone wait for memory, not for arithmetic: one row after the other is the order
   in which the hardware reads ahead best (measured: 34 GB/s against 21 with several rows side by
   side). Behind full tiles the weights are in cache already. */
ALWAYS void dot_few(float *y, size_t ldy, const void *w, size_t ldw, const float *x, size_t ldx,
                    size_t rows, size_t n, int add, const q35_dtype dtype, int alone, const int T) {
    if (!alone) {
        dot_rows(y, ldy, w, ldw, x, ldx, rows, n, add, dtype, T);
        return;
    }
    for (size_t r = 0; r < rows; r++)
        dot_tile(y + r, ldy, w, r * ldw, ldw, x, ldx, n, add, dtype, 1, T);
}

ALWAYS void dot_any(float *y, size_t ldy, const void *w, size_t ldw, const float *x, size_t ldx,
                    size_t rows, size_t tokens, size_t n, int add, const q35_dtype dtype) {
    size_t t = 0;
    for (; t + DOT_TOKENS <= tokens; t += DOT_TOKENS)
        dot_rows(y + t * ldy, ldy, w, ldw, x + t * ldx, ldx, rows, n, add, dtype, DOT_TOKENS);
    y += t * ldy;
    x += t * ldx;
    int alone = t == 0;
    switch (tokens - t) { /* less than DOT_TOKENS */
    case 1: dot_few(y, ldy, w, ldw, x, ldx, rows, n, add, dtype, alone, 1); break;
    case 2: dot_few(y, ldy, w, ldw, x, ldx, rows, n, add, dtype, alone, 2); break;
#if DOT_TOKENS > 3
    case 3: dot_few(y, ldy, w, ldw, x, ldx, rows, n, add, dtype, alone, 3); break;
    case 4: dot_few(y, ldy, w, ldw, x, ldx, rows, n, add, dtype, alone, 4); break;
    case 5: dot_few(y, ldy, w, ldw, x, ldx, rows, n, add, dtype, alone, 5); break;
#endif
    }
}

/* ---- mix: MIX_TOKENS rows of y in registers while the positions go by ---- */

ALWAYS void mix_tile(float *y, size_t ldy, const float *p, size_t ldp, const void *v, size_t v0,
                     size_t ldv, size_t positions, const q35_dtype dtype, const int T,
                     const int C) {
    V acc[MIX_TOKENS][MIX_VECTORS];
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++) acc[t][c] = vload(y + (size_t)t * ldy + c * LANES);
    for (size_t s = 0; s < positions; s++) {
        V row[MIX_VECTORS];
        for (int c = 0; c < C; c++) row[c] = vload_as(v, v0 + s * ldv + c * LANES, dtype);
        for (int t = 0; t < T; t++) {
            V weight = vset(p[(size_t)t * ldp + s]);
            for (int c = 0; c < C; c++) acc[t][c] = vfma(weight, row[c], acc[t][c]);
        }
    }
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++) vstore(y + (size_t)t * ldy + c * LANES, acc[t][c]);
}

ALWAYS void mix_tail(float *y, const float *p, const void *v, size_t v0, size_t ldv,
                     size_t positions, size_t n, const q35_dtype dtype) {
    V acc = vload_n(y, n);
    for (size_t s = 0; s < positions; s++)
        acc = vfma(vset(p[s]), vload_as_n(v, v0 + s * ldv, n, dtype), acc);
    vstore_n(y, acc, n);
}

ALWAYS void mix_rows(float *y, size_t ldy, const float *p, size_t ldp, const void *v, size_t ldv,
                     size_t positions, size_t n, const q35_dtype dtype, const int T) {
    size_t j = 0;
    for (; j + MIX_VECTORS * LANES <= n; j += MIX_VECTORS * LANES)
        mix_tile(y + j, ldy, p, ldp, v, j, ldv, positions, dtype, T, MIX_VECTORS);
    for (; j + LANES <= n; j += LANES)
        mix_tile(y + j, ldy, p, ldp, v, j, ldv, positions, dtype, T, 1);
    if (j < n)
        for (int t = 0; t < T; t++)
            mix_tail(y + (size_t)t * ldy + j, p + (size_t)t * ldp, v, j, ldv, positions, n - j,
                     dtype);
}

ALWAYS void mix_any(float *y, size_t ldy, const float *p, size_t ldp, const void *v, size_t ldv,
                    size_t tokens, size_t positions, size_t n, const q35_dtype dtype) {
    size_t t = 0;
    for (; t + MIX_TOKENS <= tokens; t += MIX_TOKENS)
        mix_rows(y + t * ldy, ldy, p + t * ldp, ldp, v, ldv, positions, n, dtype, MIX_TOKENS);
    for (; t < tokens; t++)
        mix_rows(y + t * ldy, ldy, p + t * ldp, ldp, v, ldv, positions, n, dtype, 1);
}

#define TYPED(type, dtype)                                                                        \
    static void NAME(dot_##type)(float *y, size_t ldy, const void *w, size_t ldw, const float *x, \
                                 size_t ldx, size_t rows, size_t tokens, size_t n, int add) {     \
        dot_any(y, ldy, w, ldw, x, ldx, rows, tokens, n, add, dtype);                             \
    }                                                                                             \
    static void NAME(mix_##type)(float *y, size_t ldy, const float *p, size_t ldp, const void *v, \
                                 size_t ldv, size_t tokens, size_t positions, size_t n) {         \
        mix_any(y, ldy, p, ldp, v, ldv, tokens, positions, n, dtype);                             \
    }
TYPED(f32, Q35_F32)
TYPED(f16, Q35_F16)
TYPED(bf16, Q35_BF16)

/* ---- delta ---- */

/* C vectors of columns, the last of them `tail` wide (0: full). One walk over the state a token: it
   writes what the token before decided (last_decay, last_k, d) and reads this token's products on
   the way. */
ALWAYS void delta_cols(float *out, size_t ldo, float *state, size_t lds, const float *q,
                       const float *k, size_t ldqk, const float *v, size_t ldv, const float *decay,
                       const float *beta, size_t tokens, size_t Dk, const int C,
                       const size_t tail) {
#define LOAD_COLS(p, c) (tail ? vload_n((p) + (c) * LANES, tail) : vload((p) + (c) * LANES))
#define STORE_COLS(p, c, x) \
    (tail ? vstore_n((p) + (c) * LANES, x, tail) : vstore((p) + (c) * LANES, x))
    V d[Q35_DELTA_COLS / LANES], last_decay = vset(1);
    for (int c = 0; c < C; c++) d[c] = vzero();
    const float *last_k = k;
    for (size_t t = 0; t < tokens; t++) {
        const float *qt = q + t * ldqk, *kt = k + t * ldqk;
        V read_k[Q35_DELTA_COLS / LANES], read_q[Q35_DELTA_COLS / LANES];
        for (int c = 0; c < C; c++) read_k[c] = read_q[c] = vzero();
        for (size_t i = 0; i < Dk; i++) {
            V last_ki = vset(last_k[i]), ki = vset(kt[i]), qi = vset(qt[i]);
            for (int c = 0; c < C; c++) {
                V s = vmul(last_decay, LOAD_COLS(state + i * lds, c));
                s = vfma(last_ki, d[c], s);
                STORE_COLS(state + i * lds, c, s);
                read_k[c] = vfma(s, ki, read_k[c]);
                read_q[c] = vfma(s, qi, read_q[c]);
            }
        }
        V kq_lanes = vzero();
        size_t i = 0;
        for (; i + LANES <= Dk; i += LANES) kq_lanes = vfma(vload(kt + i), vload(qt + i), kq_lanes);
        if (i < Dk) kq_lanes = vfma(vload_n(kt + i, Dk - i), vload_n(qt + i, Dk - i), kq_lanes);
        V kq = vset(vsum(kq_lanes)), decay_t = vset(decay[t]), beta_t = vset(beta[t]);
        for (int c = 0; c < C; c++) {
            d[c] = vmul(beta_t, vsub(LOAD_COLS(v + t * ldv, c), vmul(decay_t, read_k[c])));
            /* S^T q after the update = decay S^T q + (k . q) d */
            STORE_COLS(out + t * ldo, c, vfma(kq, d[c], vmul(decay_t, read_q[c])));
        }
        last_decay = decay_t;
        last_k = kt;
    }
    for (size_t i = 0; i < Dk; i++) {
        V last_ki = vset(last_k[i]);
        for (int c = 0; c < C; c++) {
            V s = vmul(last_decay, LOAD_COLS(state + i * lds, c));
            STORE_COLS(state + i * lds, c, vfma(last_ki, d[c], s));
        }
    }
#undef LOAD_COLS
#undef STORE_COLS
}

static void NAME(delta)(float *out, size_t ldo, float *state, const float *q, const float *k,
                        size_t ldqk, const float *v, size_t ldv, const float *decay,
                        const float *beta, size_t tokens, size_t Dk, size_t cols) {
    if (cols == Q35_DELTA_COLS) {
        delta_cols(out, ldo, state, cols, q, k, ldqk, v, ldv, decay, beta, tokens, Dk,
                   Q35_DELTA_COLS / LANES, 0);
        return;
    }
    /* Columns are independent: a narrow block goes one vector at a time. */
    size_t j = 0;
    for (; j + LANES <= cols; j += LANES)
        delta_cols(out + j, ldo, state + j, cols, q, k, ldqk, v + j, ldv, decay, beta, tokens, Dk,
                   1, 0);
    if (j < cols)
        delta_cols(out + j, ldo, state + j, cols, q, k, ldqk, v + j, ldv, decay, beta, tokens, Dk,
                   1, cols - j);
}

/* ---- with exponentials ---- */

/* exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; exp(r) by its Taylor polynomial of
   degree 7 (remainder below 6e-9 on that interval). ln 2 in two parts keeps r exact to f32. */
ALWAYS V vexp(V x) {
    const V magic = vset(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    x = vmin(vmax(x, vset(-87.0f)), vset(88.0f));
    V t = vfma(x, vset(1.44269504f), magic), n = vsub(t, magic);
    V r = vfma(n, vset(-0.693145752f), x);
    r = vfma(n, vset(-1.42860677e-6f), r);
    V p = vset(1.98412698e-4f);
    p = vfma(p, r, vset(1.38888889e-3f));
    p = vfma(p, r, vset(8.33333333e-3f));
    p = vfma(p, r, vset(4.16666667e-2f));
    p = vfma(p, r, vset(1.66666667e-1f));
    p = vfma(p, r, vset(0.5f));
    p = vfma(p, r, vset(1.0f));
    return vpower(vfma(p, r, vset(1.0f)), t);
}

/* a / (1 + exp(-x)) */
ALWAYS V vsigmoid_mul(V x, V a) { return vdiv(a, vadd(vset(1.0f), vexp(vsub(vzero(), x)))); }

static void NAME(silu_mul)(float *y, const float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        V g = vload(gate + i);
        vstore(y + i, vsigmoid_mul(g, vmul(g, vload(up + i))));
    }
    if (i == n) return;
    V g = vload_n(gate + i, n - i);
    vstore_n(y + i, vsigmoid_mul(g, vmul(g, vload_n(up + i, n - i))), n - i);
}

static void NAME(sigmoid_mul)(float *y, const float *gate, const float *x, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) vstore(y + i, vsigmoid_mul(vload(gate + i), vload(x + i)));
    if (i == n) return;
    vstore_n(y + i, vsigmoid_mul(vload_n(gate + i, n - i), vload_n(x + i, n - i)), n - i);
}

/* tanh-GELU: 0.5 a (1 + tanh(u)) = a / (1 + exp(-2 u)), u = sqrt(2 / pi) (a + 0.044715 a^3) */
ALWAYS V vgelu(V a) {
    V cubed = vmul(vmul(a, a), a);
    return vsigmoid_mul(vmul(vset(1.5957691216f), vfma(vset(0.044715f), cubed, a)), a);
}

static void NAME(gelu_bias)(float *x, const float *bias, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) vstore(x + i, vgelu(vadd(vload(x + i), vload(bias + i))));
    if (i == n) return;
    vstore_n(x + i, vgelu(vadd(vload_n(x + i, n - i), vload_n(bias + i, n - i))), n - i);
}

static void NAME(conv_silu)(float *y, const float *const *taps, const float *w, size_t ldw,
                            size_t K, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        V sum = vzero();
        for (size_t j = 0; j < K; j++) sum = vfma(vload(w + j * ldw + i), vload(taps[j] + i), sum);
        vstore(y + i, vsigmoid_mul(sum, sum));
    }
    if (i == n) return;
    V sum = vzero();
    for (size_t j = 0; j < K; j++)
        sum = vfma(vload_n(w + j * ldw + i, n - i), vload_n(taps[j] + i, n - i), sum);
    vstore_n(y + i, vsigmoid_mul(sum, sum), n - i);
}

static float NAME(softmax_step)(float *s, size_t n, float m, float *sum) {
    const float *end = s + n / LANES * LANES;
    const size_t rest = n % LANES;
    V most = vset(m), all = vzero();
    for (const float *p = s; p < end; p += LANES) most = vmax(most, vload(p));
    float top = vlargest(most);
    for (size_t i = 0; i < rest; i++) top = end[i] > top ? end[i] : top;
    for (float *p = s; p < end; p += LANES) {
        V e = vexp(vsub(vload(p), vset(top)));
        vstore(p, e);
        all = vadd(all, e);
    }
    if (rest) {
        float *last = s + n - rest;
        vstore_n(last, vexp(vsub(vload_n(last, rest), vset(top))), rest);
        all = vadd(all, vload_n(last, rest));
    }
    *sum = vsum(all);
    return top;
}

static float NAME(weigh)(int16_t *y, float *factor, float *s, const float *v_factor, size_t n,
                         size_t all, float norm, float m, float *sum) {
    for (size_t i = n; i < all; i++) s[i] = -INFINITY;
    V most = vset(m), total = vzero(), squares = vzero();
    for (size_t i = 0; i < all; i += LANES) most = vmax(most, vload(s + i));
    const float top = vlargest(most);
    for (size_t i = 0; i < all; i += LANES) {
        V e = vexp(vsub(vload(s + i), vset(top))), weight = vmul(e, vload(v_factor + i));
        vstore(s + i, weight);
        total = vadd(total, e);
        squares = vfma(weight, weight, squares);
    }
    *sum = vsum(total);
    const float square = vsum(squares), length = sqrtf(square);
    const float inverse = square < FLT_MIN ? 0.0f : norm / length; /* as fix_all */
    *factor = length / norm;
    /* Adding 1.5 * 2^23 rounds to an integer held in the low bits. */
    ELEMENTWISE for (size_t i = 0; i < all; i++) y[i] =
        (int16_t)float_to_bits(s[i] * inverse + 12582912.0f);
    return top;
}

static void NAME(exp)(float *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) vstore(y + i, vexp(vload(x + i)));
    if (i < n) vstore_n(y + i, vexp(vload_n(x + i, n - i)), n - i);
}

#define SIMD_MEMBERS                                                                            \
    .dot = {NAME(dot_f32), NAME(dot_f16), NAME(dot_bf16)},                                      \
    .mix = {NAME(mix_f32), NAME(mix_f16), NAME(mix_bf16)}, .delta = NAME(delta),                \
    .silu_mul = NAME(silu_mul), .sigmoid_mul = NAME(sigmoid_mul), .gelu_bias = NAME(gelu_bias), \
    .conv_silu = NAME(conv_silu), .softmax_step = NAME(softmax_step), .weigh = NAME(weigh),     \
    .exp = NAME(exp)
