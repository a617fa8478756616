/* unpack.inl: from packed records to signed bytes and f32 scales, and tokens to 8 bits. Plain
 * loops, made fast by each target's compiler flags. What the includer defines:
 *
 *   PANEL(op)            its own name of a function
 *   Q_BIAS               what is added to the bytes of tokens: 0 or 128
 *   halves(y, x)         y[0..15] = x, f16
 *   largest32(x)         the largest |x[i]| of 32
 *   round16(q, x, a)     q[i] = a x[i] to nearest even, i < 16; returns the sum
 *   round16_twice(q, low, x, a)   the same, and low[i] = 256 (a x[i] - q[i]), at most 127; returns
 *                        the sum of 256 q[i] + low[i]
 *   PANEL_NARROW         whether codes of at most 6 bits stay unsigned
 *   PANEL(unpack_codes)  codes of 32 columns, of less than 8 bits
 *   PANEL(fix_panel)     fills panel->fix */
#define INLINED static inline __attribute__((always_inline))

/* Groups whose largest number is below 1e-30 count as zeros: 127 / top must stay finite. */
static void PANEL(quantize)(const q35_tokens *tokens, size_t t, const float *x) {
    const size_t n = tokens->columns;
    uint8_t *q = tokens->q + t * n, *low = tokens->low ? tokens->low + t * n : NULL;
    q35_token_group *group = tokens->group + t * (n / Q35_GROUP);
    for (size_t k = 0; k < n; k += Q35_GROUP, group++) {
        const float top = largest32(x + k), inverse = top > 1e-30f ? 127.0f / top : 0.0f;
        group->scale = top * (low ? 1.0f / 127.0f / 256.0f : 1.0f / 127.0f);
        for (size_t h = 0; h < 2; h++) {
            const size_t i = k + h * Q35_PART;
            group->part[h] = low ? round16_twice(q + i, low + i, x + i, inverse)
                                 : round16(q + i, x + i, inverse);
        }
        group->sum = group->scale * (float)(group->part[0] + group->part[1]);
    }
}

INLINED void PANEL(unpack_record)(q35_panel_space *s, size_t column, const uint8_t *x,
                                  const q35_packing p, const q35_record r) {
    float d[Q35_PANEL], dmin[Q35_PANEL];
    halves(d, x);
    if (p.mins) halves(dmin, x + r.dmin);
    const int8_t *scales = (const int8_t *)x + r.scales;
    const uint8_t *mins = x + r.mins;
    for (size_t g = 0; g < r.columns / p.group; g++) {
        float *scale = s->scale + (column / p.group + g) * Q35_PANEL;
        float *min = s->min + (column / p.group + g) * Q35_PANEL;
        for (size_t i = 0; i < Q35_PANEL; i++)
            scale[i] = p.scaled ? d[i] * (float)scales[g * Q35_PANEL + i] : d[i];
        for (size_t i = 0; p.mins && i < Q35_PANEL; i++)
            min[i] = p.scaled ? -dmin[i] * (float)mins[g * Q35_PANEL + i] : -dmin[i];
    }
    for (size_t g = 0; p.bits < 8 && g < r.columns / Q35_GROUP; g++) PANEL(unpack_codes)
    (s->codes + (column + g * Q35_GROUP) * Q35_PANEL, x + r.codes + g * r.code_bytes, p);
}

INLINED void PANEL(unpack_type)(q35_panel *panel, q35_panel_space *s, const uint8_t *x, size_t n,
                                const q35_packing p) {
    const q35_record r = q35_record_of(p);
    for (size_t k = 0; k < n; k += r.columns)
        PANEL(unpack_record)(s, k, x + k / r.columns * r.bytes, p, r);
    *panel = (q35_panel){s->codes,
                         Q35_GROUP * Q35_PANEL,
                         s->scale,
                         p.mins ? s->min : NULL,
                         NULL,
                         p.group,
                         PANEL_NARROW && p.bits <= 6 && !p.leveled,
                         p.offset};
    if (p.bits == 8) { /* signed bytes already: read where they lie */
        panel->codes = (const int8_t *)x + r.codes;
        panel->code_stride = r.bytes;
    }
    PANEL(fix_panel)(panel, s, n);
}

static void PANEL(unpack)(q35_panel *panel, q35_panel_space *space, q35_dtype dtype,
                          const void *packed, size_t n) {
#define UNPACK(type) \
    case type: PANEL(unpack_type)(panel, space, packed, n, q35_packing_of(type)); break
    switch (dtype) { /* each a copy of its own, in which the layout is constant */
        Q35_PACKED_TYPES(UNPACK)
    default: break; /* not packed: q35_packing_of says so */
    }
#undef UNPACK
}

#undef INLINED
