/* quantize.inl: tokens as integers. What the includer defines:
 *
 *   PANEL(op)            its own name of a function
 *   PANEL_TOKENS, PANEL_FINE  tokens of a tile, of 8 bits and of 16
 *   largest32(x)         the largest |x[i]| of 32
 *   round16(q, x, a)     q[i] = a x[i] to nearest even, i < 16; returns the sum
 *   round16_twice(q, low, x, a)   the same, and low[i] = 256 (a x[i] - q[i]), at most 127; returns
 *                        the sum of 256 q[i] + low[i] */

/* 16 bytes to where every n-th four of them belong to this token. */
static inline void PANEL(spread)(int8_t *y, const int8_t *x, size_t n) {
    for (size_t i = 0; i < Q35_PART; i += 4) memcpy(y + i * n, x + i, 4);
}

/* Groups whose largest number is below 1e-30 count as zeros: 127 / top must stay finite. */
static void PANEL(quantize)(const q35_tokens *tokens, size_t t, const float *x) {
    const size_t columns = tokens->columns;
    size_t first, n = q35_tile_of(&first, t, tokens->T, tokens->low ? PANEL_FINE : PANEL_TOKENS);
    int8_t *q = tokens->q + first * columns + 4 * (t - first);
    int8_t *low = tokens->low ? tokens->low + first * columns + 4 * (t - first) : NULL;
    q35_token_group *group = tokens->group + first * (columns / Q35_GROUP) + t - first;
    for (size_t k = 0; k < columns; k += Q35_GROUP, group += n) {
        const float top = largest32(x + k), inverse = top > 1e-30f ? 127.0f / top : 0.0f;
        group->scale = top * (low ? 1.0f / 127.0f / 256.0f : 1.0f / 127.0f);
        for (size_t h = 0; h < 2; h++) {
            const size_t i = k + h * Q35_PART;
            int8_t codes[Q35_PART], rest[Q35_PART];
            group->less[h] = -(low ? round16_twice(codes, rest, x + i, inverse)
                                   : round16(codes, x + i, inverse));
            PANEL(spread)(q + i * n, codes, n);
            if (low) PANEL(spread)(low + i * n, rest, n);
        }
        group->less[2] = group->less[0] + group->less[1];
        group->sum = -group->scale * (float)group->less[2];
    }
}
