/* pairs.inl: dot_pairs, written once for every vector width and instruction. Needs what fixed.inl
 * needs, its register tile too, and of the includer PAIRS(op), its own name of a function. */

ALWAYS void PAIRS(pairs_tile)(float *y, size_t ldy, const int16_t *w, size_t width,
                              const float *w_factor, const int16_t *x, size_t ldx,
                              const float *x_factor, size_t pairs, int add, const int T,
                              const int C) {
    I acc[FIXED_TOKENS][FIXED_VECTORS];
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++) acc[t][c] = izero();
    for (size_t i = 0; i < pairs; i++, w += 2 * width) {
        I row[FIXED_VECTORS];
        for (int c = 0; c < C; c++) row[c] = iload(w + (size_t)c * LANES * 2);
        for (int t = 0; t < T; t++) {
            I pair = ipair(x + (size_t)t * ldx + 2 * i);
            for (int c = 0; c < C; c++) acc[t][c] = idot(acc[t][c], row[c], pair);
        }
    }
    int32_t sums[FIXED_TOKENS * FIXED_VECTORS * LANES]; /* or compilers spill in the loop above */
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++) istore(sums + (t * C + c) * LANES, acc[t][c]);
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++) {
            float *out = y + (size_t)t * ldy + c * LANES;
            V factor = vset(x_factor[t]);
            if (w_factor) factor = vmul(factor, vload(w_factor + c * LANES));
            vstore(out, vfma(itof(iload(sums + (t * C + c) * LANES)), factor,
                             add ? vload(out) : vzero()));
        }
}

ALWAYS void PAIRS(pairs_tokens)(float *y, size_t ldy, const int16_t *w, size_t width,
                                const float *w_factor, const int16_t *x, size_t ldx,
                                const float *x_factor, size_t pairs, int add, const int T) {
    size_t c = 0;
    for (; c + FIXED_VECTORS * LANES <= width; c += FIXED_VECTORS * LANES) PAIRS(pairs_tile)
    (y + c, ldy, w + 2 * c, width, w_factor ? w_factor + c : NULL, x, ldx, x_factor, pairs, add, T,
     FIXED_VECTORS);
    for (; c < width; c += LANES) PAIRS(pairs_tile)
    (y + c, ldy, w + 2 * c, width, w_factor ? w_factor + c : NULL, x, ldx, x_factor, pairs, add, T,
     1);
}

static void PAIRS(dot_pairs)(float *y, size_t ldy, const int16_t *w, size_t width,
                             const float *w_factor, const int16_t *x, size_t ldx,
                             const float *x_factor, size_t tokens, size_t pairs, int add) {
    size_t t = 0;
#define TOKENS(count)                                               \
    for (; t + (count) <= tokens; t += (count)) PAIRS(pairs_tokens) \
    (y + t * ldy, ldy, w, width, w_factor, x + t * ldx, ldx, x_factor + t, pairs, add, count)
    TOKENS(FIXED_TOKENS);
#if FIXED_TOKENS > 4
    TOKENS(4);
#endif
    TOKENS(2);
    TOKENS(1);
#undef TOKENS
}
