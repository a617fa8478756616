/* kv.c: a head's K or V of one position -> its place on a page. */
#include "kv.h"

#include "kernels/kernels.h"

size_t q35_kv_bytes(q35_dtype type, size_t Dh) {
    if (type == Q35_INT16) return Q35_PAGE * (q35_kv_dims(Dh) * sizeof(int16_t) + sizeof(float));
    return Q35_PAGE * q35_row_bytes(type, Dh);
}

static void store_integers(int16_t *head, int which, size_t position, const float *x, size_t Dh) {
    const size_t dims = q35_kv_dims(Dh);
    int16_t y[Q35_MAX_HEAD];
    float *factors = (float *)(head + Q35_PAGE * dims);
    factors[position] = q35_kernel->fix_all(y, x, Dh, Q35_KV_NORM);
    for (size_t i = Dh; i < dims; i++) y[i] = 0;
    for (size_t i = 0; which == 0 && i < dims; i++)
        head[(i / 2 * Q35_PAGE + position) * 2 + i % 2] = y[i];
    for (size_t k = 0; which == 1 && k < dims; k += Q35_KV_BLOCK) {
        const size_t width = dims - k < Q35_KV_BLOCK ? dims - k : Q35_KV_BLOCK;
        int16_t *row = head + k * Q35_PAGE + position / 2 * width * 2 + position % 2;
        for (size_t i = 0; i < width; i++) row[2 * i] = y[k + i];
    }
}

void q35_kv_store(void *head, q35_dtype type, int which, size_t position, const float *x,
                  size_t Dh) {
    char *row = (char *)head + (type == Q35_INT16 ? 0 : position * q35_row_bytes(type, Dh));
    if (type == Q35_INT16)
        store_integers(head, which, position, x, Dh);
    else if (type < Q35_DTYPES)
        q35_kernel->narrow[type](row, x, Dh);
    else
        q35_encode(row, type, x, NULL, Dh);
}
