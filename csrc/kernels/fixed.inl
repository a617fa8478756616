/* fixed.inl: the products of 16-bit fixed point, written once for every vector width and
 * instruction. Needs what simd.inl needs, and of the includer:
 *
 *   FIXED(op)            its own name of a function
 *   FIXED_TOKENS, FIXED_VECTORS   the register tile: tokens, vectors of rows
 *   I, izero, iload      vector of LANES pairs of int16
 *   ipair(p)             one pair in all lanes
 *   idot(acc, a, b)      acc + a[0] b[0] + a[1] b[1], LANES int32
 *   itof(v)              LANES int32 as f32
 *   itranspose(v)        v [LANES], of LANES pairs each, rows into columns
 *   isum4(a, b, c, d)    the sums of their lanes
 *   icodes(w, scale, dtype)   2 LANES stored numbers times scale, rounded to int16
 *   largest_bits(w)      of a block of f16 or bf16 without their signs */

#define FIXED_WIDTH (FIXED_VECTORS * LANES)

/* ---- weights: one block of one row becomes integers ---- */

/* What brings a block's largest magnitude to 2^11 .. 2^12, a power of two and one within f32, and
   what takes it back. A block that is not finite has a factor that is none. */
ALWAYS float FIXED(block_scale)(float *factor, const uint16_t *w, const q35_dtype dtype) {
    const uint32_t most = largest_bits(w);
    /* The exponent field as f32 has it; of all subnormals the same one. */
    const uint32_t exponent = dtype == Q35_F16 ? (most >> 10) + 112 : most >> 7;
    const uint32_t field = exponent < 12 ? 253 : 265 - exponent;
    const int finite = dtype == Q35_F16 ? most < 0x7c00 : most < 0x7f80;
    *factor = bits_to_float(finite ? (254 - field) << 23 : 0x7fc00000u);
    return bits_to_float(field << 23);
}

/* n elements of a row as a whole block. */
ALWAYS const uint16_t *FIXED(whole)(uint16_t *space, const uint16_t *w, size_t n) {
    if (n >= Q35_FIXED) return w;
    memset(space, 0, Q35_FIXED * sizeof *space);
    return memcpy(space, w, n * sizeof *space);
}

/* Row after row, then columns of what that gave: rows lie so far apart that the first-level cache
   has no room to come back to many. */
ALWAYS void FIXED(pack)(int16_t *packed, float *factor, const uint16_t *w, size_t ldw, size_t rows,
                        size_t n, const q35_dtype dtype) {
    int16_t codes[LANES][Q35_FIXED];
    uint16_t space[Q35_FIXED];
    for (size_t r = 0; r < Q35_FIXED_ROWS; r += LANES) {
        for (size_t i = 0; i < LANES; i++) {
            const uint16_t *row = r + i < rows ? w + (r + i) * ldw : w;
            const uint16_t *block = FIXED(whole)(space, row, r + i < rows ? n : 0);
            const V scale = vset(FIXED(block_scale)(factor + r + i, block, dtype));
            for (size_t k = 0; k < Q35_FIXED; k += 2 * LANES) {
                istore(codes[i] + k, icodes(block + k, scale, dtype));
                /* Hardware does not read ahead in so many rows. */
                _mm_prefetch((const char *)(row + 2 * Q35_FIXED + k), _MM_HINT_T1);
            }
        }
        for (size_t k = 0; k < Q35_FIXED; k += 2 * LANES) {
            I v[LANES];
            for (size_t i = 0; i < LANES; i++) v[i] = iload(codes[i] + k);
            itranspose(v);
            for (size_t i = 0; i < LANES; i++)
                istore(packed + ((k / 2 + i) * Q35_FIXED_ROWS + r) * 2, v[i]);
        }
    }
}

static void FIXED(pack_fixed)(int16_t *packed, float *factor, q35_dtype dtype, const void *w,
                              size_t ldw, size_t rows, size_t n) {
    if (dtype == Q35_F16)
        FIXED(pack)(packed, factor, w, ldw, rows, n, Q35_F16);
    else
        FIXED(pack)(packed, factor, w, ldw, rows, n, Q35_BF16);
}

/* ---- many tokens ---- */

/* FIXED_WIDTH rows against T tokens: the sums stay in registers. */
ALWAYS void FIXED(tile)(float *sum, const int16_t *w, const float *w_factor, const int16_t *x,
                        const float *x_factor, size_t n, const int T) {
    I acc[FIXED_TOKENS][FIXED_VECTORS];
    for (int t = 0; t < T; t++)
        for (int c = 0; c < FIXED_VECTORS; c++) acc[t][c] = izero();
    for (size_t i = 0; i < n; i += 2) {
        I row[FIXED_VECTORS];
        for (int c = 0; c < FIXED_VECTORS; c++)
            row[c] = iload(w + i * Q35_FIXED_ROWS + (size_t)c * LANES * 2);
        for (int t = 0; t < T; t++) {
            I pair = ipair(x + (size_t)t * Q35_FIXED + i);
            for (int c = 0; c < FIXED_VECTORS; c++) acc[t][c] = idot(acc[t][c], row[c], pair);
        }
    }
    /* Registers change hands here, or compilers move them about in the loop above. */
    for (int t = 0; t < T; t++)
        for (int c = 0; c < FIXED_VECTORS; c++) IN_REGISTER(acc[t][c]);
    for (int t = 0; t < T; t++)
        for (int c = 0; c < FIXED_VECTORS; c++) {
            float *out = sum + (size_t)t * Q35_FIXED_ROWS + c * LANES;
            V factor = vmul(vload(w_factor + c * LANES), vset(x_factor[t]));
            vstore(out, vfma(itof(acc[t][c]), factor, vload(out)));
        }
}

static void FIXED(dot_fixed)(float *sum, const int16_t *w, const float *w_factor, const int16_t *x,
                             const float *x_factor, size_t T, size_t n) {
    for (size_t t = 0; t < T; t += FIXED_TOKENS) {
#define TILE(m)                                                          \
    for (size_t r = 0; r < Q35_FIXED_ROWS; r += FIXED_WIDTH) FIXED(tile) \
    (sum + t * Q35_FIXED_ROWS + r, w + 2 * r, w_factor + r, x + t * Q35_FIXED, x_factor + t, n, m)
        switch (T - t) {
        case 1: TILE(1); break;
        case 2: TILE(2); break;
        case 3: TILE(3); break;
#if FIXED_TOKENS > 4
        case 4: TILE(4); break;
        case 5: TILE(5); break;
#endif
        default: TILE(FIXED_TOKENS);
        }
#undef TILE
    }
}

/* ---- few tokens: weights become integers in registers, row after row ---- */

/* Elements, 2 KiB: a tenth faster than what the hardware reads ahead by itself. */
#define READ_AHEAD (8 * Q35_FIXED)

/* A single token: four blocks have their lanes summed at once. */
ALWAYS I FIXED(block)(float *factor, const uint16_t *w, const int16_t *x, const q35_dtype dtype) {
    const V scale = vset(FIXED(block_scale)(factor, w, dtype));
    I sum = izero();
    for (size_t i = 0; i < Q35_FIXED; i += 2 * LANES) {
        _mm_prefetch((const char *)(w + i + READ_AHEAD), _MM_HINT_T0);
        sum = idot(sum, icodes(w + i, scale, dtype), iload(x + i));
    }
    return sum;
}

ALWAYS float FIXED(row)(float y, const uint16_t *w, const int16_t *x, const float *x_factor,
                        size_t n, const q35_dtype dtype) {
    I a[4] = {izero(), izero(), izero(), izero()};
    float factor[4], sum[4];
    size_t k = 0;
    for (; k + 4 * Q35_FIXED <= n; k += 4 * Q35_FIXED, x_factor += 4) {
        for (size_t b = 0; b < 4; b++)
            a[b] = FIXED(block)(factor + b, w + k + b * Q35_FIXED, x + k + b * Q35_FIXED, dtype);
        _mm_storeu_ps(sum, _mm_cvtepi32_ps(isum4(a[0], a[1], a[2], a[3])));
        for (size_t b = 0; b < 4; b++) y = fmaf(sum[b], factor[b] * x_factor[b], y);
    }
    for (; k < n; k += Q35_FIXED, x_factor++) {
        uint16_t space[Q35_FIXED];
        a[0] = FIXED(block)(factor, FIXED(whole)(space, w + k, n - k), x + k, dtype);
        _mm_storeu_ps(sum, _mm_cvtepi32_ps(isum4(a[0], a[0], a[0], a[0])));
        y = fmaf(sum[0], factor[0] * x_factor[0], y);
    }
    return y;
}

/* T <= 4 tokens, whose sums are one vector. */
ALWAYS void FIXED(row_of_few)(float *y, const uint16_t *w, const int16_t *x, const float *x_factor,
                              size_t ldx, size_t n, const q35_dtype dtype, const int T) {
    __m128 sum = _mm_loadu_ps(y);
    for (size_t k = 0; k < n; k += Q35_FIXED, x += ldx * Q35_FIXED, x_factor += ldx) {
        uint16_t space[Q35_FIXED];
        float factor[4] = {0}, w_factor;
        const uint16_t *block = FIXED(whole)(space, w + k, n - k);
        const V scale = vset(FIXED(block_scale)(&w_factor, block, dtype));
        I a[4] = {izero(), izero(), izero(), izero()};
        for (size_t i = 0; i < Q35_FIXED; i += 2 * LANES) {
            _mm_prefetch((const char *)(w + k + i + READ_AHEAD), _MM_HINT_T0);
            I codes = icodes(block + i, scale, dtype);
            for (int t = 0; t < T; t++)
                a[t] = idot(a[t], codes, iload(x + (size_t)t * Q35_FIXED + i));
        }
        for (int t = 0; t < T; t++) factor[t] = w_factor * x_factor[t];
        sum =
            _mm_fmadd_ps(_mm_cvtepi32_ps(isum4(a[0], a[1], a[2], a[3])), _mm_loadu_ps(factor), sum);
    }
    _mm_storeu_ps(y, sum);
}

ALWAYS void FIXED(few)(float *y, size_t ldy, const uint16_t *w, size_t ldw, const int16_t *x,
                       const float *x_factor, size_t ldx, size_t rows, size_t n, int add,
                       const q35_dtype dtype, const int T) {
    for (size_t r = 0; r < rows; r++) {
        float sum[4] = {0};
        for (size_t t = 0; t < (size_t)T && add; t++) sum[t] = y[t * ldy + r];
        if (T == 1 && ldx == 1)
            sum[0] = FIXED(row)(sum[0], w + r * ldw, x, x_factor, n, dtype);
        else
            FIXED(row_of_few)(sum, w + r * ldw, x, x_factor, ldx, n, dtype, T);
        for (size_t t = 0; t < (size_t)T; t++) y[t * ldy + r] = sum[t];
    }
}

static void FIXED(dot_stored)(float *y, size_t ldy, q35_dtype dtype, const void *w, size_t ldw,
                              const int16_t *x, const float *x_factor, size_t ldx, size_t rows,
                              size_t T, size_t n, int add) {
#define CASE(t, type) \
    case t: FIXED(few)(y, ldy, w, ldw, x, x_factor, ldx, rows, n, add, type, t); break
#define CASES(type) \
    CASE(1, type);  \
    CASE(2, type);  \
    CASE(3, type);  \
    CASE(4, type)
    if (dtype == Q35_F16) {
        switch (T) { CASES(Q35_F16); }
    } else {
        switch (T) { CASES(Q35_BF16); }
    }
#undef CASE
#undef CASES
}

#define FIXED_MEMBERS(target)                                         \
    .dot_fixed = dot_fixed##target, .pack_fixed = pack_fixed##target, \
    .dot_stored = dot_stored##target
