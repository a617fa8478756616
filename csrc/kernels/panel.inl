/* panel.inl: products of panels and tokens in 8 bits, written once for every vector width and
 * instruction. Needs what simd.inl needs, and of the includer:
 *
 *   PANEL(op)                 its own name of a function
 *   PANEL_TOKENS              tokens of a register tile: 8 or 4
 *   PANEL_FIX                 whether integer sums start from panel->fix
 *   PANEL_NARROW              whether codes of at most 6 bits stay unsigned and go by two steps:
 *   idot8(acc, w, x, v, z)    acc + w x + v z, w and v as they are loaded, x and z of usigned4
 *   PANEL_SIGNED              whether udot4 takes both factors signed
 *   I, izero, iload, istore   vector of LANES int32, or of LANES times four bytes
 *   iset, iset8, isub8, itof  from one int32, from one byte; difference of bytes; int32 as f32
 *   iadd, ishl8               sums of int32; 256 times them
 *   ishl, ishr                shifts of 16-bit lanes
 *   iand, imerge(a, b, m)     a & b; a | b & m
 *   ibytes(p)                 LANES int8 as f32
 *   ilevels(v)                q35_iq4_levels of bytes 0 to 15
 *   W, codes4(v)              signed bytes of LANES rows, ready to be multiplied
 *   X, token4(p)              four bytes of a token, in all lanes
 *   idot4(acc, w, x, low)     acc + sum of four products, exact; low: x may hold -128
 *   and for a single token, whose codes are not negative:
 *   usigned4(p)               four bytes of a token without the bias, in all lanes
 *   udot4(acc, w, x, bits)    as idot4, w unsigned of so many bits (PANEL_SIGNED: signed where it
 *                             has 8), x signed */

#define PARTS (Q35_PANEL / LANES)

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

ALWAYS void PANEL(unpack_codes)(int8_t *codes, const uint8_t *x, const q35_packing p) {
    for (int j = 0; j < 8; j++)
        for (int c = 0; c < PARTS; c++) {
            I code = PANEL(stored)(x, j, c, p.bits);
            if (p.leveled) code = ilevels(code);
            if (p.offset && !PANEL_NARROW) code = isub8(code, iset8((char)p.offset));
            istore(codes + 64 * j + c * 4 * LANES, code);
        }
}

#include "unpack.inl"

/* What a group's integer sums are worth. */
ALWAYS V PANEL(add_group)(V sum, I acc, V scale, float token_scale) {
    return vfma(itof(acc), vmul(scale, vset(token_scale)), sum);
}

/* acc + products of the bytes of T tokens and 16 rows, in `steps` of four columns */
ALWAYS void PANEL(panel_steps)(I acc[PANEL_TOKENS][PARTS], const int8_t *codes, const uint8_t *q,
                               size_t columns, const int steps, const int low, const int narrow,
                               const int T) {
    (void)low, (void)narrow; /* not every target asks */
#if PANEL_NARROW
    for (int j = 0; narrow && j < steps; j += 2) {
        I w[2 * PARTS];
        for (int c = 0; c < 2 * PARTS; c++) w[c] = iload(codes + (j * PARTS + c) * 4 * LANES);
        for (int t = 0; t < T; t++) {
            const uint8_t *bytes = q + (size_t)t * columns + 4 * j;
            I x = usigned4(bytes), z = usigned4(bytes + 4);
            for (int c = 0; c < PARTS; c++) acc[t][c] = idot8(acc[t][c], w[c], x, w[PARTS + c], z);
        }
    }
    if (narrow) return;
#endif
    for (int j = 0; j < steps; j++) {
        W w[PARTS];
        for (int c = 0; c < PARTS; c++) w[c] = codes4(iload(codes + (j * PARTS + c) * 4 * LANES));
        for (int t = 0; t < T; t++) {
            X x = token4(q + (size_t)t * columns + 4 * j);
            for (int c = 0; c < PARTS; c++) acc[t][c] = idot4(acc[t][c], w[c], x, low);
        }
    }
}

/* One group of 16 rows against T tokens: columns k .. k + 4 steps of theirs. */
ALWAYS void PANEL(panel_group)(V sum[PANEL_TOKENS][PARTS], const int8_t *codes, const float *scale,
                               const float *min, const int32_t *fix, int offset,
                               const q35_tokens *x, size_t k, const int steps, const int fine,
                               const int narrow, const int T) {
    const size_t columns = x->columns, groups = columns / Q35_GROUP;
    const q35_token_group *group = x->group + k / Q35_GROUP;
    I acc[PANEL_TOKENS][PARTS];
    for (int t = 0; t < T; t++)
        for (int c = 0; c < PARTS; c++) acc[t][c] = fix ? iload(fix + c * LANES) : izero();
    PANEL(panel_steps)(acc, codes, x->q + k, columns, steps, 0, narrow, T);
    if (fine) {
        for (int t = 0; t < T; t++)
            for (int c = 0; c < PARTS; c++) {
                acc[t][c] = ishl8(acc[t][c]);
                if (fix) acc[t][c] = iadd(acc[t][c], iload(fix + c * LANES));
            }
        PANEL(panel_steps)(acc, codes, x->low + k, columns, steps, 1, narrow, T);
    }
    for (int t = 0; narrow && offset && t < T; t++) {
        const int32_t *part = group[(size_t)t * groups].part;
        I mend = iset(-offset * (steps == 8 ? part[0] + part[1] : part[k % Q35_GROUP / Q35_PART]));
        for (int c = 0; c < PARTS; c++) acc[t][c] = iadd(acc[t][c], mend);
    }
    for (int c = 0; c < PARTS; c++) {
        V s = vload(scale + c * LANES);
        for (int t = 0; t < T; t++)
            sum[t][c] = PANEL(add_group)(sum[t][c], acc[t][c], s, group[(size_t)t * groups].scale);
    }
    for (int t = 0; min && t < T; t++) {
        const q35_token_group *own = group + (size_t)t * groups;
        float half = own->scale * (float)own->part[k % Q35_GROUP / Q35_PART];
        V total = vset(steps == 8 ? own->sum : half);
        for (int c = 0; c < PARTS; c++) sum[t][c] = vfma(vload(min + c * LANES), total, sum[t][c]);
    }
}

ALWAYS void PANEL(panel_tile)(float *y, size_t ld, int add, const q35_panel *w, const q35_tokens *x,
                              size_t k, size_t n, const int halved, const int with_min,
                              const int fine, const int narrow, const int T) {
    const size_t columns = halved ? 16 : 32;
    V sum[PANEL_TOKENS][PARTS];
    for (int t = 0; t < T; t++)
        for (int c = 0; c < PARTS; c++)
            sum[t][c] = add ? vload(y + (size_t)t * ld + c * LANES) : vzero();
    for (size_t g = 0; g < n / columns; g++) {
        const size_t at = g * Q35_PANEL, column = g * columns;
        const int8_t *codes =
            w->codes + column / Q35_GROUP * w->code_stride + column % Q35_GROUP * Q35_PANEL;
        PANEL(panel_group)
        (sum, codes, w->scale + at, with_min ? w->min + at : NULL, PANEL_FIX ? w->fix + at : NULL,
         w->offset, x, k + column, halved ? 4 : 8, fine, narrow, T);
    }
    for (int t = 0; t < T; t++)
        for (int c = 0; c < PARTS; c++) vstore(y + (size_t)t * ld + c * LANES, sum[t][c]);
}

ALWAYS void PANEL(panel_tokens)(float *sum, size_t ld, int add, const q35_panel *w,
                                const q35_tokens *x, size_t k, size_t n, const int fine,
                                const int narrow, const int T) {
    if (w->group == 16 && w->min)
        PANEL(panel_tile)(sum, ld, add, w, x, k, n, 1, 1, fine, narrow, T);
    else if (w->group == 16)
        PANEL(panel_tile)(sum, ld, add, w, x, k, n, 1, 0, fine, narrow, T);
    else if (w->min)
        PANEL(panel_tile)(sum, ld, add, w, x, k, n, 0, 1, fine, narrow, T);
    else
        PANEL(panel_tile)(sum, ld, add, w, x, k, n, 0, 0, fine, narrow, T);
}

ALWAYS void PANEL(panel_all)(float *sum, size_t ld, int add, const q35_panel *w, q35_tokens x,
                             size_t T, size_t k, size_t n, const int fine, const int narrow) {
    size_t t = 0;
#define TOKENS(count)                                                                 \
    for (; t + (count) <= T; t += (count)) {                                          \
        PANEL(panel_tokens)(sum + t * ld, ld, add, w, &x, k, n, fine, narrow, count); \
        x.q += (count) * x.columns;                                                   \
        x.low += fine ? (count) * x.columns : 0;                                      \
        x.group += (count) * (x.columns / Q35_GROUP);                                 \
    }
    TOKENS(PANEL_TOKENS)
#if PANEL_TOKENS > 4
    TOKENS(4)
#endif
    TOKENS(2)
    TOKENS(1)
#undef TOKENS
}

static void PANEL(dot_panel)(float *sum, size_t ld, int add, const q35_panel *w,
                             const q35_tokens *tokens, size_t T, size_t k, size_t n) {
    if (PANEL_NARROW && w->narrow && tokens->low)
        PANEL(panel_all)(sum, ld, add, w, *tokens, T, k, n, 1, 1);
    else if (PANEL_NARROW && w->narrow)
        PANEL(panel_all)(sum, ld, add, w, *tokens, T, k, n, 0, 1);
    else if (tokens->low)
        PANEL(panel_all)(sum, ld, add, w, *tokens, T, k, n, 1, 0);
    else
        PANEL(panel_all)(sum, ld, add, w, *tokens, T, k, n, 0, 0);
}

/* ---- one token, from packed records: nothing is stored on the way ---- */

/* One group, columns k .. k + 4 steps: codes stay as they are stored, and the token's sum mends the
   offset. Both bytes of a fine token meet a code once it is taken apart. */
ALWAYS void PANEL(packed_group)(V sum[PARTS], const uint8_t *codes, const V scale[PARTS],
                                const q35_tokens *x, size_t k, const q35_packing p,
                                const int fine) {
    const int wide = p.bits == 8 || p.leveled; /* signed bytes, which may become unsigned */
    const int offset = !wide ? p.offset : PANEL_SIGNED ? 0 : 128;
    const int bits = wide ? 8 : p.bits, steps = p.group / 4;
    const int first = k % Q35_GROUP ? 4 : 0;
    const q35_token_group *group = x->group + k / Q35_GROUP;
    const int32_t total = steps == 8 ? group->part[0] + group->part[1] : group->part[first / 4];
    I acc[PARTS], low[PARTS];
    for (int c = 0; c < PARTS; c++) acc[c] = low[c] = izero();
    for (int j = 0; j < steps; j++) {
        I q = usigned4(x->q + k + 4 * j), rest = q;
        if (fine) rest = usigned4(x->low + k + 4 * j);
        for (int c = 0; c < PARTS; c++) {
            I code = PANEL(stored)(codes, first + j, c, p.bits);
            if (p.leveled) code = ilevels(code);
            if (wide && !PANEL_SIGNED) code = isub8(code, iset8((char)128));
            acc[c] = udot4(acc[c], code, q, bits);
            if (fine) low[c] = udot4(low[c], code, rest, bits);
        }
    }
    for (int c = 0; c < PARTS; c++) {
        if (fine) acc[c] = iadd(ishl8(acc[c]), low[c]);
        if (offset) acc[c] = iadd(acc[c], iset(-offset * total));
        sum[c] = PANEL(add_group)(sum[c], acc[c], scale[c], group->scale);
    }
}

ALWAYS void PANEL(packed_record)(V sum[PARTS], const uint8_t *record, const q35_tokens *x, size_t k,
                                 const q35_packing p, const int fine) {
    const q35_record r = q35_record_of(p);
    float d[Q35_PANEL], dmin[Q35_PANEL];
    halves(d, record);
    if (p.mins) halves(dmin, record + r.dmin);
    for (size_t g = 0; g < r.columns / p.group; g++) {
        const size_t column = g * p.group;
        const int8_t *scales = (const int8_t *)record + r.scales + g * Q35_PANEL;
        const int8_t *mins = (const int8_t *)record + r.mins + g * Q35_PANEL; /* below 64 */
        V scale[PARTS];
        for (int c = 0; c < PARTS; c++) {
            scale[c] = vload(d + c * LANES);
            if (p.scaled) scale[c] = vmul(scale[c], ibytes(scales + c * LANES));
        }
        PANEL(packed_group)
        (sum, record + r.codes + column / Q35_GROUP * r.code_bytes, scale, x, k + column, p, fine);
        for (int c = 0; p.mins && c < PARTS; c++) {
            V min = vsub(vzero(), vload(dmin + c * LANES));
            if (p.scaled) min = vmul(min, ibytes(mins + c * LANES));
            sum[c] = vfma(min, vset(x->group[(k + column) / Q35_GROUP].sum), sum[c]);
        }
    }
}

ALWAYS void PANEL(packed_type)(float *y, const uint8_t *record, const q35_tokens *x,
                               const q35_packing p, const int fine) {
    const q35_record r = q35_record_of(p);
    V sum[PARTS];
    for (int c = 0; c < PARTS; c++) sum[c] = vzero();
    for (size_t k = 0; k < x->columns; k += r.columns, record += r.bytes)
        PANEL(packed_record)(sum, record, x, k, p, fine);
    for (int c = 0; c < PARTS; c++) vstore(y + c * LANES, sum[c]);
}

static void PANEL(dot_packed)(float *sum, q35_dtype dtype, const void *packed,
                              const q35_tokens *token) {
#define ONE(type)                                                            \
    case type:                                                               \
        if (token->low)                                                      \
            PANEL(packed_type)(sum, packed, token, q35_packing_of(type), 1); \
        else                                                                 \
            PANEL(packed_type)(sum, packed, token, q35_packing_of(type), 0); \
        break
    switch (dtype) {
        Q35_PACKED_TYPES(ONE)
    default: break;
    }
#undef ONE
}
