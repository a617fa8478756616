/* panel.inl: products of panels and tokens as integers, written once for every vector width and
 * instruction. Codes are taken apart in registers, anew for the tokens of every tile. Where that
 * takes time from the products (PANEL_APART) many tokens find them taken apart in the first-level
 * cache. Needs what simd.inl needs, and of the includer:
 *
 *   PANEL(op)                 its own name of a function
 *   PANEL_TOKENS, PANEL_FINE  tokens of a register tile, of 8 bits and of 16: 8, 4 or 2
 *   PANEL_SIGNED              whether idot8 takes both factors signed where they have 8 bits
 *   PANEL_APART               whether codes are taken apart beforehand for two tiles and more
 *   PANEL_WORDS               whether tokens of 16 bits are words (panel.h)
 *   I, izero, iload, istore   vector of LANES int32, or of LANES times four bytes
 *   iset8, isub8, itof        from one byte; difference of bytes; int32 as f32
 *   iadd, ishl32              sums of int32; their shifts
 *   ishl, ishr                shifts of 16-bit lanes
 *   iand, imerge(a, b, m)     a & b; a | b & m
 *   ibytes(p)                 LANES int8 as f32
 *   ilevels(v)                q35_iq4_levels of bytes 0 to 15
 *   ipair(p)                  four bytes of a token, in all lanes
 *   idot8(acc, w, x, v, z, bits)   acc + sums of the four products of w x and of v z, exact; w and
 *                             v are unsigned and have so many bits (PANEL_SIGNED: signed where they
 *                             have 8), x and z are signed
 *
 * and where PANEL_WORDS (PANEL_SIGNED, too) instead of that idot8:
 *
 *   iadd_bytes(acc, w, x)     acc + sums of two products of bytes, w unsigned, in int16
 *   PANEL_RUN(bits)           steps for which that is exact where w has so many bits
 *   irun(acc, sums)           acc + such sums, in int32
 *   isplit(v, wide)           bytes, signed where wide, as words: even_odd
 *   idot(acc, a, b)           acc + sums of two products of words */

#define PARTS (Q35_PANEL / LANES)
#define AHEAD 4096 /* bytes of codes that are asked for before their turn */
#define APART 256  /* columns taken apart at once */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNROLLED /* with their checks compilers would take many minutes */
#elif defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif

#include "quantize.inl"

ALWAYS int PANEL(log2)(const int power) { return 31 - __builtin_clz((unsigned)power); }

/* Step j of 32 columns as unsigned bytes, rows of part c. */
ALWAYS I PANEL(stored)(const uint8_t *x, const int j, const int c, const int bits) {
    if (bits == 8) return iload(x + 64 * j + c * 4 * LANES);
    I low = iload(x + 64 * (j % 4) + c * 4 * LANES);
    I code = iand(j < 4 ? low : ishr(low, 4), iset8(15));
    if (bits == 4) return code;
    const int up = bits == 5 ? 4 - j : 4 - j / 2 * 2; /* how far the high bits are from bit 4 */
    I high = iload(x + 256 + (bits == 6 ? 64 * (j % 2) : 0) + c * 4 * LANES);
    return imerge(code, up >= 0 ? ishl(high, up) : ishr(high, -up), iset8(bits == 5 ? 16 : 48));
}

/* The same, ready to be multiplied; they are already where they lie apart. */
ALWAYS I PANEL(code)(const uint8_t *x, const int j, const int c, const q35_packing p,
                     const int apart) {
    if (apart) return iload(x + 64 * j + c * 4 * LANES);
    I code = PANEL(stored)(x, j, c, p.bits);
    if (p.leveled) code = ilevels(code);
    if (q35_is_wide(p) && !PANEL_SIGNED) code = isub8(code, iset8((char)128));
    return code;
}

/* What mends a group's sum of codes that are stored with an offset. */
ALWAYS I PANEL(mend)(const q35_token_group *x, const int offset, const int first,
                     const q35_packing p) {
    if (!offset) return izero();
    return ishl32(ipair(x->less + (p.group == Q35_GROUP ? 2 : first / 4)), PANEL(log2)(offset));
}

#if PANEL_WORDS

/* Bytes of at most 6 bits: `acc` is the group's sum from step `first` on, of T tokens of 8 bits at
   q whose groups are `own`. */
ALWAYS void PANEL(sum_bytes)(I acc[PANEL_TOKENS][PARTS], const uint8_t *codes, const int8_t *q,
                             const q35_token_group *own, const int first, const q35_packing p,
                             const int apart, const int T) {
    const int steps = p.group / 4, run = PANEL_RUN(p.bits) < steps ? PANEL_RUN(p.bits) : steps;
    I part[PANEL_TOKENS][PARTS];
    for (int t = 0; t < T; t++)
        for (int c = 0; c < PARTS; c++) acc[t][c] = part[t][c] = izero();
    UNROLLED for (int j = first; j < first + steps; j++) {
        I w[PARTS];
        for (int c = 0; c < PARTS; c++) w[c] = PANEL(code)(codes, j, c, p, apart);
        for (int t = 0; t < T; t++) {
            const I four = ipair(q + 4 * (j * T + t));
            for (int c = 0; c < PARTS; c++) {
                part[t][c] = iadd_bytes(part[t][c], w[c], four);
                if ((j + 1 - first) % run) continue;
                acc[t][c] = irun(acc[t][c], part[t][c]);
                part[t][c] = izero();
            }
        }
    }
    for (int t = 0; t < T && p.offset; t++)
        for (int c = 0; c < PARTS; c++)
            acc[t][c] = iadd(acc[t][c], PANEL(mend)(own + t, p.offset, first, p));
}

/* Step j of 32 columns as words, without an offset. */
ALWAYS even_odd PANEL(code_words)(const uint8_t *x, const int j, const int c, const q35_packing p,
                                  const int apart) {
    if (apart) {
        const uint8_t *words = x + 128 * j + c * 8 * LANES;
        return (even_odd){iload(words), iload(words + 4 * LANES)};
    }
    I code = PANEL(code)(x, j, c, p, 0);
    if (p.offset) code = isub8(code, iset8((char)p.offset));
    return isplit(code, q35_is_wide(p) || p.offset);
}

/* The sum of tokens of 16 bits. */
ALWAYS void PANEL(sum_words)(I acc[PANEL_TOKENS][PARTS], const uint8_t *codes, const int8_t *q,
                             const int first, const q35_packing p, const int apart, const int T) {
    for (int t = 0; t < T; t++)
        for (int c = 0; c < PARTS; c++) acc[t][c] = izero();
    UNROLLED for (int j = first; j < first + p.group / 4; j++) {
        even_odd w[PARTS];
        for (int c = 0; c < PARTS; c++) w[c] = PANEL(code_words)(codes, j, c, p, apart);
        for (int t = 0; t < T; t++) {
            const I even = ipair(q + 8 * (j * T + t)), odd = ipair(q + 8 * (j * T + t) + 4);
            for (int c = 0; c < PARTS; c++)
                acc[t][c] = idot(idot(acc[t][c], w[c].even, even), w[c].odd, odd);
        }
    }
}

ALWAYS void PANEL(sums)(I acc[PANEL_TOKENS][PARTS], const uint8_t *codes, const int8_t *q,
                        const q35_token_group *own, const int first, const q35_packing p,
                        const int apart, const int fine, const int T) {
    if (fine)
        PANEL(sum_words)(acc, codes, q, first, p, apart, T);
    else
        PANEL(sum_bytes)(acc, codes, q, own, first, p, apart, T);
}

#else

/* `acc` is the group's sum from step `first` on, of T tokens at q whose groups are `own`. Codes
   stay unsigned, and the tokens' sums mend the offset. */
ALWAYS void PANEL(sums)(I acc[PANEL_TOKENS][PARTS], const uint8_t *codes, const int8_t *q,
                        const q35_token_group *own, const int first, const q35_packing p,
                        const int apart, const int fine, const int T) {
    const int wide = q35_is_wide(p), bits = wide ? 8 : p.bits, planes = fine ? 2 : 1;
    const int offset = !wide ? p.offset : PANEL_SIGNED ? 0 : 128;
    I low[PANEL_TOKENS][PARTS];
    for (int t = 0; t < T; t++)
        for (int c = 0; c < PARTS; c++) {
            low[t][c] = PANEL(mend)(own + t, offset, first, p);
            acc[t][c] = fine ? izero() : low[t][c];
        }
    UNROLLED for (int j = first; j < first + p.group / 4; j += 2) {
        I w[PARTS], v[PARTS];
        for (int c = 0; c < PARTS; c++) {
            w[c] = PANEL(code)(codes, j, c, p, apart);
            v[c] = PANEL(code)(codes, j + 1, c, p, apart);
        }
        for (int t = 0; t < T; t++) {
            const int8_t *x = q + 4 * (planes * j * T + t), *next = x + 4 * planes * T;
            I a = ipair(x), b = ipair(next);
            for (int c = 0; c < PARTS; c++) acc[t][c] = idot8(acc[t][c], w[c], a, v[c], b, bits);
            if (!fine) continue;
            a = ipair(x + 4 * T), b = ipair(next + 4 * T);
            for (int c = 0; c < PARTS; c++) low[t][c] = idot8(low[t][c], w[c], a, v[c], b, bits);
        }
    }
    for (int t = 0; fine && t < T; t++)
        for (int c = 0; c < PARTS; c++) acc[t][c] = iadd(ishl32(acc[t][c], 8), low[t][c]);
}

#endif

/* One group of 16 rows against a tile of T tokens: of columns k .. k + 32 those from step `first`
   on. */
ALWAYS void PANEL(group)(V sum[PANEL_TOKENS][PARTS], const uint8_t *codes, const V scale[PARTS],
                         const q35_tokens *x, size_t k, const int first, const q35_packing p,
                         const int apart, const int fine, const int T) {
    const q35_token_group *own = x->group + k / Q35_GROUP * (size_t)T;
    I acc[PANEL_TOKENS][PARTS];
    PANEL(sums)(acc, codes, x->q + k * (size_t)T * (fine ? 2 : 1), own, first, p, apart, fine, T);
    for (int t = 0; t < T; t++)
        for (int c = 0; c < PARTS; c++)
            sum[t][c] = vfma(itof(acc[t][c]), vmul(scale[c], vset(own[t].scale)), sum[t][c]);
}

/* sum += min times the tokens' own sums of columns k .. k + 32, or of the half from step `first` */
ALWAYS void PANEL(add_mins)(V sum[PANEL_TOKENS][PARTS], const V min[PARTS], const q35_tokens *x,
                            size_t k, const int first, const int halved, const int T) {
    const q35_token_group *own = x->group + k / Q35_GROUP * (size_t)T;
    for (int t = 0; t < T; t++) {
        const V total = vset(halved ? -own[t].scale * (float)own[t].less[first / 4] : own[t].sum);
        for (int c = 0; c < PARTS; c++) sum[t][c] = vfma(min[c], total, sum[t][c]);
    }
}

ALWAYS void PANEL(load_sums)(V sum[PANEL_TOKENS][PARTS], const float *y, size_t ld, int add,
                             const int T) {
    for (int t = 0; t < T; t++)
        for (int c = 0; c < PARTS; c++)
            sum[t][c] = add ? vload(y + (size_t)t * ld + c * LANES) : vzero();
}

ALWAYS void PANEL(store_sums)(float *y, size_t ld, V sum[PANEL_TOKENS][PARTS], const int T) {
    for (int t = 0; t < T; t++)
        for (int c = 0; c < PARTS; c++) vstore(y + (size_t)t * ld + c * LANES, sum[t][c]);
}

/* Calls tile(y, x, count) for the tokens of a call, `most` at a time, then by smaller tiles. */
#define TILE(count)                                             \
    for (; x.T >= (count) && (count) <= most; x.T -= (count)) { \
        CALL(count);                                            \
        y += (count) * ld;                                      \
        x.q += (count) * x.columns * (fine ? 2 : 1);            \
        x.group += (count) * (x.columns / Q35_GROUP);           \
    }
#define TILES TILE(8) TILE(4) TILE(2) TILE(1)

/* ---- from packed records ---- */

/* What comes a little later, for memory would wait while several tokens are multiplied, codes of
   six bits put together, or bytes multiplied as words. Where it is read without a pause the
   processor guesses better. */
ALWAYS void PANEL(ask_ahead)(const uint8_t *codes, const size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(codes + AHEAD + i);
}

/* Of a column of 16 codes taken apart. */
ALWAYS size_t PANEL(taken_bytes)(const int fine) {
    return fine && PANEL_WORDS ? 2 * Q35_PANEL : Q35_PANEL;
}

/* The g-th group of a record, and its mins; from step `first` of 32 columns on. `taken`: its codes,
   where they lie apart. */
ALWAYS void PANEL(packed_group)(V sum[PANEL_TOKENS][PARTS], const uint8_t *record,
                                const uint8_t *taken, const float *d, const float *dmin, size_t g,
                                const q35_tokens *x, size_t k, const int first, const q35_packing p,
                                const int apart, const int fine, const int T) {
    const q35_record r = q35_record_of(p);
    const size_t column = g * p.group / Q35_GROUP * Q35_GROUP;
    const uint8_t *codes = record + r.codes + column / Q35_GROUP * r.code_bytes;
    const int slow = T >= 4 || p.bits == 6 || PANEL_WORDS;
    if (!apart && first == 0 && slow) PANEL(ask_ahead)(codes, r.code_bytes);
    const int8_t *scales = (const int8_t *)record + r.scales + g * Q35_PANEL;
    const int8_t *mins = (const int8_t *)record + r.mins + g * Q35_PANEL; /* below 64 */
    V scale[PARTS], min[PARTS];
    for (int c = 0; c < PARTS; c++) {
        scale[c] = vload(d + c * LANES);
        if (p.scaled) scale[c] = vmul(scale[c], ibytes(scales + c * LANES));
        if (p.mins) min[c] = vsub(vzero(), vload(dmin + c * LANES));
        if (p.mins && p.scaled) min[c] = vmul(min[c], ibytes(mins + c * LANES));
    }
    if (apart) codes = taken + column * PANEL(taken_bytes)(fine);
    PANEL(group)(sum, codes, scale, x, k + column, first, p, apart, fine, T);
    if (p.mins) PANEL(add_mins)(sum, min, x, k + column, first, 0, T);
}

ALWAYS void PANEL(packed_record)(V sum[PANEL_TOKENS][PARTS], const uint8_t *record,
                                 const uint8_t *taken, const q35_tokens *x, size_t k,
                                 const q35_packing p, const int apart, const int fine,
                                 const int T) {
    const q35_record r = q35_record_of(p);
    float d[Q35_PANEL], dmin[Q35_PANEL];
    halves(d, record);
    if (p.mins) halves(dmin, record + r.dmin);
    for (size_t g = 0; g < r.columns / p.group; g += Q35_GROUP / p.group) {
        PANEL(packed_group)(sum, record, taken, d, dmin, g, x, k, 0, p, apart, fine, T);
        if (p.group == Q35_PART)
            PANEL(packed_group)(sum, record, taken, d, dmin, g + 1, x, k, 4, p, apart, fine, T);
    }
}

ALWAYS void PANEL(packed_tile)(float *y, size_t ld, int add, const uint8_t *record,
                               const uint8_t *taken, const q35_tokens *x, size_t k, size_t n,
                               const q35_packing p, const int apart, const int fine, const int T) {
    const q35_record r = q35_record_of(p);
    V sum[PANEL_TOKENS][PARTS];
    PANEL(load_sums)(sum, y, ld, add, T);
    for (size_t i = 0; i < n; i += r.columns, record += r.bytes) PANEL(packed_record)
    (sum, record, apart ? taken + i * PANEL(taken_bytes)(fine) : NULL, x, k + i, p, apart, fine, T);
    PANEL(store_sums)(y, ld, sum, T);
}

ALWAYS void PANEL(packed_tiles)(float *y, size_t ld, int add, const uint8_t *record,
                                const uint8_t *taken, q35_tokens x, size_t k, size_t n,
                                const q35_packing p, const int apart, const int fine) {
    const int most = fine ? PANEL_FINE : PANEL_TOKENS;
#define CALL(count) PANEL(packed_tile)(y, ld, add, record, taken, &x, k, n, p, apart, fine, count)
    TILES
#undef CALL
}

/* Codes of n columns as code() gives them, or code_words(). */
ALWAYS void PANEL(take_apart)(uint8_t *taken, const uint8_t *record, size_t n, const q35_packing p,
                              const int fine) {
    const q35_record r = q35_record_of(p);
    const size_t step = 4 * PANEL(taken_bytes)(fine);
    for (size_t column = 0; column < n; column += Q35_GROUP) {
        const uint8_t *codes = record + column / r.columns * r.bytes + r.codes +
                               column % r.columns / Q35_GROUP * r.code_bytes;
        PANEL(ask_ahead)(codes, r.code_bytes);
        for (int j = 0; j < 8; j++, taken += step)
            for (int c = 0; c < PARTS; c++) {
                uint8_t *y = taken + (size_t)c * step / PARTS;
#if PANEL_WORDS
                if (fine) {
                    even_odd words = PANEL(code_words)(codes, j, c, p, 0);
                    istore(y, words.even);
                    istore(y + 4 * LANES, words.odd);
                    continue;
                }
#endif
                istore(y, PANEL(code)(codes, j, c, p, 0));
            }
    }
}

ALWAYS void PANEL(packed_type)(float *y, size_t ld, int add, const uint8_t *record, q35_tokens x,
                               size_t k, size_t n, const q35_packing p, const int fine) {
    const q35_record r = q35_record_of(p);
    const int as_stored = p.bits == 8 && !(fine && PANEL_WORDS);
    if (!PANEL_APART || as_stored || x.T < 2 * PANEL_TOKENS) {
        PANEL(packed_tiles)(y, ld, add, record, NULL, x, k, n, p, 0, fine);
        return;
    }
    uint8_t taken[APART * Q35_PANEL * (PANEL_WORDS ? 2 : 1)];
    for (size_t i = 0; i < n; i += APART, record += APART / r.columns * r.bytes) {
        const size_t m = n - i < APART ? n - i : APART;
        PANEL(take_apart)(taken, record, m, p, fine);
        PANEL(packed_tiles)(y, ld, add || i > 0, record, taken, x, k + i, m, p, 1, fine);
    }
}

static void PANEL(dot_packed)(float *sum, size_t ld, int add, q35_dtype dtype, const void *packed,
                              const q35_tokens *tokens, size_t k, size_t n) {
#define MANY(type)                                                                            \
    case type:                                                                                \
        if (tokens->fine || (PANEL_WORDS && q35_is_wide(q35_packing_of(type))))               \
            PANEL(packed_type)(sum, ld, add, packed, *tokens, k, n, q35_packing_of(type), 1); \
        else                                                                                  \
            PANEL(packed_type)(sum, ld, add, packed, *tokens, k, n, q35_packing_of(type), 0); \
        break
    switch (dtype) { /* each a copy of its own, in which the layout is constant */
        Q35_PACKED_TYPES(MANY)
    default: break; /* not packed: q35_packing_of says so */
    }
#undef MANY
}

/* ---- from panels of bytes ---- */

ALWAYS void PANEL(panel_group)(V sum[PANEL_TOKENS][PARTS], const q35_panel *w, size_t column,
                               const q35_tokens *x, size_t k, const int first, const int fine,
                               const int T) {
    const q35_packing p = {.bits = 8, .group = Q35_PART};
    const size_t g = column + 4 * (size_t)first; /* scales are 16 rows of 16 columns */
    V scale[PARTS], min[PARTS];
    for (int c = 0; c < PARTS; c++) {
        scale[c] = vload(w->scale + g + c * LANES);
        min[c] = vload(w->min + g + c * LANES);
    }
    const uint8_t *codes = (const uint8_t *)w->codes + column * Q35_PANEL;
    PANEL(group)(sum, codes, scale, x, k + column, first, p, 0, fine, T);
    PANEL(add_mins)(sum, min, x, k + column, first, 1, T);
}

ALWAYS void PANEL(panel_tile)(float *y, size_t ld, int add, const q35_panel *w, const q35_tokens *x,
                              size_t k, size_t n, const int fine, const int T) {
    V sum[PANEL_TOKENS][PARTS];
    PANEL(load_sums)(sum, y, ld, add, T);
    for (size_t column = 0; column < n; column += Q35_GROUP) {
        PANEL(panel_group)(sum, w, column, x, k, 0, fine, T);
        PANEL(panel_group)(sum, w, column, x, k, 4, fine, T);
    }
    PANEL(store_sums)(y, ld, sum, T);
}

ALWAYS void PANEL(panel_tiles)(float *y, size_t ld, int add, const q35_panel *w, q35_tokens x,
                               size_t k, size_t n, const int fine) {
    const int most = fine ? PANEL_FINE : PANEL_TOKENS;
#define CALL(count) PANEL(panel_tile)(y, ld, add, w, &x, k, n, fine, count)
    TILES
#undef CALL
}

static void PANEL(dot_panel)(float *sum, size_t ld, int add, const q35_panel *w,
                             const q35_tokens *tokens, size_t k, size_t n) {
    if (tokens->fine || PANEL_WORDS)
        PANEL(panel_tiles)(sum, ld, add, w, *tokens, k, n, 1);
    else
        PANEL(panel_tiles)(sum, ld, add, w, *tokens, k, n, 0);
}

#undef TILE
#undef TILES
#undef UNROLLED
#undef AHEAD
#undef APART
