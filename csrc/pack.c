/* pack.c: rows of blocks -> panels of 16 rows, once at load, in the bits they have.
 *
 * block -> parts (formats.c) -> their place in the panel's record (kernels/panel.h). What a file
 * holds is neither rounded nor widened: a packed matrix is as large as its blocks, but for scales
 * of six bits that take a byte. This file knows nothing of models. */
#include "pack.h"

#include <string.h>

#include "block.h"

#define PANELS_PER_TASK 4

int q35_packable(q35_dtype dtype) { return q35_packing_of(dtype).bits > 0; }

static size_t panel_bytes(const q35_matrix *w) {
    q35_record r = q35_record_of(q35_packing_of(w->dtype));
    return w->cols / r.columns * r.bytes;
}

size_t q35_packed_bytes(const q35_matrix *w) {
    return (w->rows + Q35_PANEL - 1) / Q35_PANEL * panel_bytes(w);
}

const uint8_t *q35_packed_at(const q35_matrix *w, size_t p, size_t k) {
    q35_record r = q35_record_of(q35_packing_of(w->dtype));
    return w->packed + p * panel_bytes(w) + k / r.columns * r.bytes;
}

/* What is stored for a code: its distance from the smallest, or its level's index. */
static void stored_codes(uint8_t *stored, const q35_parts *parts, q35_packing p, size_t n) {
    if (!p.leveled) {
        for (size_t i = 0; i < n; i++) stored[i] = (uint8_t)(parts->code[i] + p.offset);
        return;
    }
    uint8_t index[256] = {0}; /* by level */
    for (int i = 0; i < 16; i++) index[(uint8_t)q35_iq4_levels[i]] = (uint8_t)i;
    for (size_t i = 0; i < n; i++) stored[i] = index[(uint8_t)parts->code[i]];
}

void q35_put_codes(uint8_t *x, const uint8_t *stored, size_t bits, size_t row) {
    uint32_t step[8], high[2] = {0, 0}; /* four columns each */
    memcpy(step, stored, sizeof step);
    x += 4 * row;
    if (bits == 8) {
        for (size_t j = 0; j < 8; j++) memcpy(x + 64 * j, &step[j], 4);
        return;
    }
    for (size_t v = 0; v < 4; v++) {
        const uint32_t low = (step[v] & 0x0f0f0f0fu) | (step[v + 4] & 0x0f0f0f0fu) << 4;
        memcpy(x + 64 * v, &low, 4);
    }
    for (size_t j = 0; j < 8 && bits == 5; j++) high[0] |= (step[j] >> 4 & 0x01010101u) << j;
    for (size_t j = 0; j < 8 && bits == 6; j++)
        high[j % 2] |= (step[j] >> 4 & 0x03030303u) << j / 2 * 2;
    for (size_t v = 0; v + 4 < bits; v++) memcpy(x + 256 + 64 * v, &high[v], 4);
}

/* An f16, as it was: a damaged file's infinity and NaN too. */
static void put_scale(uint8_t *x, float value) {
    if (value - value == 0) {
        put_half(x, value);
        return;
    }
    x[0] = 0;
    x[1] = value != value ? 0x7e : value > 0 ? 0x7c : 0xfc;
}

/* A row of a record, from its block; of the rows that a matrix does not have from none. */
static void put_row(uint8_t *record, const q35_record *r, q35_dtype dtype, const uint8_t *block,
                    size_t row) {
    const q35_packing p = q35_packing_of(dtype);
    q35_parts parts = {0};
    uint8_t stored[256];
    if (block) q35_split(&parts, dtype, block);
    stored_codes(stored, &parts, p, r->columns);
    put_scale(record + 2 * row, parts.d);
    if (p.mins) put_scale(record + r->dmin + 2 * row, parts.dmin);
    for (size_t g = 0; p.scaled && g < r->columns / p.group; g++) {
        size_t part = g * p.group / Q35_PART;
        record[r->scales + g * Q35_PANEL + row] = (uint8_t)parts.scale[part];
        if (p.mins) record[r->mins + g * Q35_PANEL + row] = parts.min[part];
    }
    for (size_t g = 0; g < r->columns / Q35_GROUP; g++)
        q35_put_codes(record + r->codes + g * r->code_bytes, stored + g * Q35_GROUP, p.bits, row);
}

typedef struct job {
    const q35_matrix *w;
    uint8_t *packed;
} job;

static void pack_panels(void *arg, size_t index, int worker) {
    (void)worker;
    const job *j = arg;
    const q35_matrix *w = j->w;
    const q35_record r = q35_record_of(q35_packing_of(w->dtype));
    const size_t row_bytes = q35_row_bytes(w->dtype, w->cols), size = panel_bytes(w);
    const size_t block_bytes = q35_row_bytes(w->dtype, r.columns);
    const size_t panels = (w->rows + Q35_PANEL - 1) / Q35_PANEL;
    for (size_t n = 0; n < PANELS_PER_TASK; n++) {
        const size_t panel = index * PANELS_PER_TASK + n;
        if (panel >= panels) return;
        for (size_t row = 0; row < Q35_PANEL; row++) {
            const uint8_t *blocks =
                (const uint8_t *)w->data + (panel * Q35_PANEL + row) * row_bytes;
            int there = panel * Q35_PANEL + row < w->rows;
            for (size_t k = 0; k < w->cols / r.columns; k++)
                put_row(j->packed + panel * size + k * r.bytes, &r, w->dtype,
                        there ? blocks + k * block_bytes : NULL, row);
        }
    }
}

int q35_pack(q35_team *team, const q35_matrix *w, uint8_t *packed) {
    job j = {w, packed};
    size_t panels = (w->rows + Q35_PANEL - 1) / Q35_PANEL;
    size_t tasks = (panels + PANELS_PER_TASK - 1) / PANELS_PER_TASK;
    return q35_parallel(team, tasks, PANELS_PER_TASK * Q35_PANEL * w->cols, pack_panels, &j);
}

/* ---- one row, back to numbers ---- */

/* The code of one column of 32, as it is stored. */
static int stored_at(const uint8_t *x, q35_packing p, size_t row, size_t column) {
    const size_t j = column / 4, at = 4 * row + column % 4;
    if (p.bits == 8) return (int8_t)x[64 * j + at];
    int code = x[64 * (j % 4) + at] >> j / 4 * 4 & 15;
    if (p.bits == 5) code |= (x[256 + at] >> j & 1) << 4;
    if (p.bits == 6) code |= (x[256 + 64 * (j % 2) + at] >> j / 2 * 2 & 3) << 4;
    return code;
}

void q35_packed_read(float *y, const q35_matrix *w, size_t row, size_t col, size_t n) {
    const q35_packing p = q35_packing_of(w->dtype);
    const q35_record r = q35_record_of(p);
    const uint8_t *panel = q35_packed_at(w, row / Q35_PANEL, 0);
    row %= Q35_PANEL;
    for (size_t k = col; k < col + n; k++) {
        const uint8_t *record = panel + k / r.columns * r.bytes;
        const size_t at = k % r.columns, group = at / p.group * Q35_PANEL + row;
        const float d = half_at(record + 2 * row);
        const float dmin = p.mins ? half_at(record + r.dmin + 2 * row) : 0.0f;
        const int scale = p.scaled ? (int8_t)record[r.scales + group] : 1;
        const int min = p.scaled && p.mins ? record[r.mins + group] : 1;
        int code =
            stored_at(record + r.codes + at / Q35_GROUP * r.code_bytes, p, row, at % Q35_GROUP);
        code = p.leveled ? q35_iq4_levels[code] : code - p.offset;
        y[k - col] = d * (float)scale * (float)code - dmin * (float)min;
    }
}

void q35_panel_read(q35_panel *panel, const q35_matrix *w, size_t p, size_t k, size_t n) {
    const size_t elements = q35_formats[w->dtype].elements, parts_each = elements / Q35_PART;
    memset(panel->codes, 0, n * Q35_PANEL);
    memset(panel->scale, 0, n / Q35_PART * Q35_PANEL * sizeof *panel->scale);
    memset(panel->min, 0, n / Q35_PART * Q35_PANEL * sizeof *panel->min);
    for (size_t row = 0; row < Q35_PANEL && p * Q35_PANEL + row < w->rows; row++) {
        const uint8_t *block = (const uint8_t *)w->data +
                               (p * Q35_PANEL + row) * q35_row_bytes(w->dtype, w->cols) +
                               q35_row_bytes(w->dtype, k);
        for (size_t b = 0; b < n / elements; b++, block += q35_formats[w->dtype].bytes) {
            q35_parts parts;
            q35_split(&parts, w->dtype, block);
            for (size_t j = 0; j < parts_each; j++) {
                const size_t at = (b * parts_each + j) * Q35_PANEL + row;
                panel->scale[at] = parts.d * (float)parts.scale[j];
                panel->min[at] = -parts.dmin * (float)parts.min[j];
            }
            int8_t *codes = panel->codes + b * elements * Q35_PANEL + 4 * row;
            for (size_t i = 0; i < elements; i += 4)
                memcpy(codes + i * Q35_PANEL, parts.code + i, 4);
        }
    }
}
