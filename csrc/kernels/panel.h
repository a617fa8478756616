/* panel.h: matrices of blocks as the integer kernels read them, 16 rows side by side.
 *
 * A panel is 16 rows. Packed, it is a chain of records, each holding all 16 rows' columns of one
 * block (32 or 256) in the bits they have in the file:
 *
 *   d f16 [16] | dmin f16 [16], where there are mins | scales int8 [groups, 16], where they are
 *   codes | mins u8 [groups, 16], where both are | codes of 32 columns [record / 32]
 *
 * Codes of 32 columns are 8 steps of 64 bytes, byte (row, c) of step j for column 4 j + c: a vector
 * instruction that multiplies four bytes and adds them up serves 16 rows at once. In less than 8
 * bits, byte i of vector v < 4 holds the low nibbles of steps v and v + 4; then bit j of byte i is
 * the fifth bit of step j (bits = 5), or bits 2 (j / 2) of vector j % 2 are the fifth and sixth.
 *
 * Types that are not packed become signed bytes and f32 scales of 16 columns, a piece of columns at
 * a time, in a buffer that stays in the first-level cache. */
#ifndef Q35_PANEL_H
#define Q35_PANEL_H

#include "../formats.h"

#define Q35_PANEL 16   /* rows */
#define Q35_GROUP 32   /* columns that share one scale of a token */
#define Q35_PIECE 1024 /* columns multiplied at once, at most */

/* What goes with 32 columns of a token as integers. */
typedef struct q35_token_group {
    float scale;     /* a number is scale times its integer */
    float sum;       /* of the 32 numbers */
    int32_t less[3]; /* sums of the integers of each half, and of both, negated */
} q35_token_group;

/* Tokens as integers: of 8 bits, |q| <= 127; or `fine` ones of 16, 256 q + low. Those that a
   target's kernels multiply together lie interleaved: of each in turn four columns, and one group.
   Such tiles follow each other: as many of the target's size as there are, then smaller ones. */
typedef struct q35_tokens {
    /* [tiles, columns / 4, tokens of the tile, 4], of fine tokens [.., 2, tokens of the tile, 4]: q
       and low. Where the target multiplies words they are int16 [.., tokens of the tile, 4], of
       which columns 0, 2, 1, 3 are next to each other. */
    int8_t *q;
    q35_token_group *group; /* [tiles, columns / 32, tokens of the tile] */
    size_t T, columns;      /* a multiple of 32 */
    int fine;
} q35_tokens;

/* Tokens of the tile that token t is in, a power of two up to `most`; *first is its first. */
static inline size_t q35_tile_of(size_t *first, size_t t, size_t T, size_t most) {
    *first = t / most * most;
    while (*first + most > T || t >= *first + most) {
        if (t >= *first + most) *first += most;
        most /= 2;
    }
    return most;
}

/* How a block type lies in a record. */
typedef struct q35_packing {
    uint8_t bits;    /* of a code: 4, 5, 6 or 8; 0: this type is not packed */
    uint8_t group;   /* columns that share a scale: 16 or 32 */
    uint8_t offset;  /* code = stored - offset */
    uint8_t leveled; /* code = q35_iq4_levels[stored] instead */
    uint8_t scaled;  /* groups have scales (and mins) that are codes themselves */
    uint8_t mins;    /* there is a dmin */
} q35_packing;

/* Statements for each of the packed types, in which the type is constant. */
#define Q35_PACKED_TYPES(statement) \
    statement(Q35_Q4_0);            \
    statement(Q35_Q4_1);            \
    statement(Q35_Q5_0);            \
    statement(Q35_Q5_1);            \
    statement(Q35_Q8_0);            \
    statement(Q35_IQ4_NL);          \
    statement(Q35_Q4_K);            \
    statement(Q35_Q5_K);            \
    statement(Q35_Q6_K);            \
    statement(Q35_IQ4_XS);          \
    statement(Q35_Q6_0);

/* bits, group, offset, leveled, scaled, mins */
static inline q35_packing q35_packing_of(q35_dtype dtype) {
    switch (dtype) {
    case Q35_Q4_0: return (q35_packing){4, 32, 8, 0, 0, 0};
    case Q35_Q4_1: return (q35_packing){4, 32, 0, 0, 0, 1};
    case Q35_Q5_0: return (q35_packing){5, 32, 16, 0, 0, 0};
    case Q35_Q5_1: return (q35_packing){5, 32, 0, 0, 0, 1};
    case Q35_Q8_0: return (q35_packing){8, 32, 0, 0, 0, 0};
    case Q35_IQ4_NL: return (q35_packing){4, 32, 0, 1, 0, 0};
    case Q35_Q4_K: return (q35_packing){4, 32, 0, 0, 1, 1};
    case Q35_Q5_K: return (q35_packing){5, 32, 0, 0, 1, 1};
    case Q35_Q6_K: return (q35_packing){6, 16, 32, 0, 1, 0};
    case Q35_IQ4_XS: return (q35_packing){4, 32, 0, 1, 1, 0};
    case Q35_Q6_0: return (q35_packing){6, 32, 32, 0, 0, 0};
    default: return (q35_packing){0, 0, 0, 0, 0, 0};
    }
}

/* Whether codes are signed bytes when they are multiplied. */
static inline int q35_is_wide(q35_packing p) { return p.bits == 8 || p.leveled; }

/* 16 rows, some columns of them. */
typedef struct q35_panel {
    int8_t codes[Q35_PIECE * Q35_PANEL];
    float scale[Q35_PIECE / Q35_PART * Q35_PANEL]; /* [columns / 16, 16] */
    float min[Q35_PIECE / Q35_PART * Q35_PANEL];   /* to be added */
} q35_panel;

/* A record's parts, in bytes from its start. */
typedef struct q35_record {
    size_t columns, dmin, scales, mins, codes, code_bytes /* of 32 columns */, bytes;
} q35_record;

static inline q35_record q35_record_of(q35_packing p) {
    q35_record r = {.columns = p.scaled ? 256 : 32, .dmin = 2 * Q35_PANEL};
    const size_t groups = p.scaled ? r.columns / p.group : 0;
    r.scales = r.dmin + (p.mins ? 2 * Q35_PANEL : 0);
    r.mins = r.scales + groups * Q35_PANEL;
    r.codes = r.mins + (p.mins ? groups * Q35_PANEL : 0);
    r.code_bytes = (size_t)p.bits * Q35_GROUP * Q35_PANEL / 8;
    r.bytes = r.codes + r.columns / Q35_GROUP * r.code_bytes;
    return r;
}

/* The table's members that a target with these kernels fills. */
#define PANEL_MEMBERS(suffix)                                                             \
    .words = words##suffix, .quantize = quantize##suffix, .dot_panel = dot_panel##suffix, \
    .dot_packed = dot_packed##suffix

#endif
