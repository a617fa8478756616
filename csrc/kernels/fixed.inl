/* fixed.inl: dot_fixed, written once for every vector width and instruction. Needs what simd.inl
 * needs, and of the includer:
 *
 *   FIXED(op)            its own name of a function
 *   FIXED_TOKENS, FIXED_VECTORS   the register tile: tokens, vectors of rows
 *   I, izero, iload      vector of LANES pairs of int16
 *   ipair(p)             one pair in all lanes
 *   idot(acc, a, b)      acc + a[0] b[0] + a[1] b[1], LANES int32
 *   itof(v)              LANES int32 as f32 */

#define FIXED_WIDTH (FIXED_VECTORS * LANES)

/* FIXED_WIDTH rows against T tokens. A block's sums stay in registers and are exact; y takes them
   up block by block. */
ALWAYS void FIXED(tile)(float *y, size_t ldy, const int16_t *w, const float *w_factor,
                        const int16_t *x, size_t ldx, const float *x_factor, size_t ldf, size_t n,
                        int add, const int T) {
    for (size_t k = 0, b = 0; k < n; k += Q35_FIXED, b++) {
        size_t end = n - k < Q35_FIXED ? n : k + Q35_FIXED;
        I acc[FIXED_TOKENS][FIXED_VECTORS];
        for (int t = 0; t < T; t++)
            for (int c = 0; c < FIXED_VECTORS; c++) acc[t][c] = izero();
        for (size_t i = k; i < end; i += 2) {
            I row[FIXED_VECTORS];
            for (int c = 0; c < FIXED_VECTORS; c++)
                row[c] = iload(w + i * Q35_FIXED_ROWS + (size_t)c * LANES * 2);
            for (int t = 0; t < T; t++) {
                I weight = ipair(x + (size_t)t * ldx + i);
                for (int c = 0; c < FIXED_VECTORS; c++) acc[t][c] = idot(acc[t][c], row[c], weight);
            }
        }
        int32_t sums[FIXED_TOKENS * FIXED_WIDTH]; /* or compilers spill in the loop above */
        for (int t = 0; t < T; t++)
            for (int c = 0; c < FIXED_VECTORS; c++)
                istore(sums + t * FIXED_WIDTH + c * LANES, acc[t][c]);
        for (int t = 0; t < T; t++)
            for (int c = 0; c < FIXED_VECTORS; c++) {
                float *out = y + (size_t)t * ldy + c * LANES;
                V factor = vload(w_factor + b * Q35_FIXED_ROWS + c * LANES);
                factor = vmul(factor, vset(x_factor[(size_t)t * ldf + b]));
                V sum = itof(iload(sums + t * FIXED_WIDTH + c * LANES));
                vstore(out, vfma(sum, factor, add ? vload(out) : vzero()));
            }
        add = 1;
    }
}

ALWAYS void FIXED(rows)(float *y, size_t ldy, const int16_t *w, const float *w_factor,
                        const int16_t *x, size_t ldx, const float *x_factor, size_t ldf,
                        size_t rows, size_t n, int add, const int T) {
    size_t r = 0;
    for (; r + FIXED_WIDTH <= rows; r += FIXED_WIDTH)
        FIXED(tile)(y + r, ldy, w + 2 * r, w_factor + r, x, ldx, x_factor, ldf, n, add, T);
    if (r == rows) return;
    float part[FIXED_TOKENS * FIXED_WIDTH] = {0};
    for (int t = 0; t < T && add; t++)
        memcpy(part + t * FIXED_WIDTH, y + (size_t)t * ldy + r, (rows - r) * sizeof *y);
    FIXED(tile)(part, FIXED_WIDTH, w + 2 * r, w_factor + r, x, ldx, x_factor, ldf, n, add, T);
    for (int t = 0; t < T; t++)
        memcpy(y + (size_t)t * ldy + r, part + t * FIXED_WIDTH, (rows - r) * sizeof *y);
}

static void FIXED(dot_fixed)(float *y, size_t ldy, const int16_t *w, const float *w_factor,
                             const int16_t *x, size_t ldx, const float *x_factor, size_t ldf,
                             size_t rows, size_t tokens, size_t n, int add) {
    size_t t = 0;
    for (; t + FIXED_TOKENS <= tokens; t += FIXED_TOKENS) FIXED(rows)
    (y + t * ldy, ldy, w, w_factor, x + t * ldx, ldx, x_factor + t * ldf, ldf, rows, n, add,
     FIXED_TOKENS);
    for (; t < tokens; t++) FIXED(rows)
    (y + t * ldy, ldy, w, w_factor, x + t * ldx, ldx, x_factor + t * ldf, ldf, rows, n, add, 1);
}
