/* quantize.inl: tokens as integers. What the includer defines:
 *
 *   PANEL(op)            its own name of a function
 *   PANEL_TOKENS, PANEL_FINE  tokens of a tile, of 8 bits and of 16
 *   PANEL_WORDS          whether those of 16 bits are words (panel.h)
 *   largest32(x)         the largest |x[i]| of 32
 *   round16(q, x, a)     q[i] = a x[i] to nearest even, i < 16; returns the sum
 *   round16_twice(q, low, x, a)   the same, and low[i] = 256 (a x[i] - q[i]), at most 127; returns
 *                        the sum of 256 q[i] + low[i] */

enum { PANEL(words) = PANEL_WORDS };

/* 16 columns to where every n-th four of them belong to this token. */
static inline void PANEL(put)(int8_t *y, const int8_t *q, size_t n) {
    for (size_t i = 0; i < Q35_PART; i += 4) memcpy(y + i * n, q + i, 4);
}

static inline void PANEL(put_fine)(int8_t *y, const int8_t *q, const int8_t *low, size_t n) {
#if PANEL_WORDS
    int16_t word[Q35_PART];
    for (size_t i = 0; i < Q35_PART; i++) word[i] = (int16_t)(256 * q[i] + low[i]);
    for (size_t i = 0; i < Q35_PART; i += 4) {
        const int16_t four[4] = {word[i], word[i + 2], word[i + 1], word[i + 3]};
        memcpy(y + 2 * i * n, four, sizeof four);
    }
#else
    PANEL(put)(y, q, 2 * n);
    PANEL(put)(y + 4 * n, low, 2 * n);
#endif
}

/* Groups whose largest number is below 1e-30 count as zeros: 127 / top must stay finite. */
static void PANEL(quantize)(const q35_tokens *tokens, size_t t, const float *x) {
    const size_t columns = tokens->columns;
    const int fine = tokens->fine;
    size_t first, n = q35_tile_of(&first, t, tokens->T, fine ? PANEL_FINE : PANEL_TOKENS);
    int8_t *q = tokens->q + first * columns * (fine ? 2 : 1);
    q += (t - first) * (fine && PANEL_WORDS ? 8 : 4);
    q35_token_group *group = tokens->group + first * (columns / Q35_GROUP) + t - first;
    for (size_t k = 0; k < columns; k += Q35_GROUP, group += n) {
        const float top = largest32(x + k), inverse = top > 1e-30f ? 127.0f / top : 0.0f;
        group->scale = top * (fine ? 1.0f / 127.0f / 256.0f : 1.0f / 127.0f);
        for (size_t h = 0; h < 2; h++) {
            const size_t i = k + h * Q35_PART;
            int8_t codes[Q35_PART], rest[Q35_PART];
            if (fine) {
                group->less[h] = -round16_twice(codes, rest, x + i, inverse);
                PANEL(put_fine)(q + 2 * i * n, codes, rest, n);
            } else {
                group->less[h] = -round16(codes, x + i, inverse);
                PANEL(put)(q + i * n, codes, n);
            }
        }
        group->less[2] = group->less[0] + group->less[1];
        group->sum = -group->scale * (float)group->less[2];
    }
}
