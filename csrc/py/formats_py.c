/* formats_py.c: block formats on arrays: what there is, decode, encode. */
#include "py.h"

#include <math.h>
#include <string.h>

const char q35_py_formats_doc[] =
    "formats() -> dict[str, tuple[int, int, int, bool]]\n\n"
    "Storage types by name: (number in GGUF files, elements of a block, bytes of a block, whether\n"
    "encode_blocks makes it).";

PyObject *q35_py_formats(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < Q35_FORMATS; i++) {
        const q35_format *f = &q35_formats[i];
        PyObject *item = Py_BuildValue("(innO)", f->ggml_type, (Py_ssize_t)f->elements,
                                       (Py_ssize_t)f->bytes, f->encodable ? Py_True : Py_False);
        if (!item || PyDict_SetItemString(dict, f->name, item)) Py_CLEAR(dict);
        Py_XDECREF(item);
    }
    return dict;
}

/* -1 with ValueError where no format has this name, or a row of n elements is no whole number of
   its blocks. */
static int find_format(const char *where, const char *name, Py_ssize_t n, q35_dtype *dtype) {
    for (int i = 0; i < Q35_FORMATS; i++) {
        if (strcmp(name, q35_formats[i].name) != 0) continue;
        *dtype = (q35_dtype)i;
        if (n >= 0 && (size_t)n % q35_formats[i].elements == 0) return 0;
        PyErr_Format(PyExc_ValueError,
                     "%s: %zd elements, expected a multiple of %zu: a block of %s", where, n,
                     q35_formats[i].elements, name);
        return -1;
    }
    PyErr_Format(PyExc_ValueError, "%s: no format is called '%s'; formats() lists them", where,
                 name);
    return -1;
}

const char q35_py_decode_blocks_doc[] =
    "decode_blocks(name, data, n) -> float32 [n]\n\n"
    "The n numbers that the bytes hold. `data`: any contiguous buffer of exactly the bytes that n\n"
    "elements take; TypeError or ValueError otherwise. The GIL is dropped meanwhile.";

PyObject *q35_py_decode_blocks(PyObject *module, PyObject *args) {
    (void)module;
    const char *name;
    Py_buffer data;
    Py_ssize_t n;
    q35_dtype dtype;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "sy*n:decode_blocks", &name, &data, &n)) return NULL;
    if (find_format("decode_blocks", name, n, &dtype)) goto done;
    const size_t needed = q35_row_bytes(dtype, (size_t)n);
    if ((size_t)data.len != needed) {
        PyErr_Format(PyExc_ValueError,
                     "decode_blocks: %zd bytes, expected %zu: %zd elements of %s take so many",
                     data.len, needed, n, name);
        goto done;
    }
    npy_intp shape[1] = {n};
    result = PyArray_SimpleNew(1, shape, NPY_FLOAT32);
    if (!result) goto done;
    float *y = PyArray_DATA((PyArrayObject *)result);
    Py_BEGIN_ALLOW_THREADS;
    q35_decode(y, dtype, data.buf, (size_t)n);
    Py_END_ALLOW_THREADS;
done:
    PyBuffer_Release(&data);
    return result;
}

/* An array of this number of dimensions as encode_blocks takes it: borrowed, or NULL with an
   exception. */
static PyArrayObject *float_array(PyObject *object, const char *what, int ndim) {
    const char *const shape = ndim == 2 ? "[rows, n]" : "[n]";
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "encode_blocks: %s is a %s, expected a float32 array %s",
                     what, Py_TYPE(object)->tp_name, shape);
        return NULL;
    }
    PyArrayObject *a = (PyArrayObject *)object;
    if (PyArray_TYPE(a) != NPY_FLOAT32 || !PyArray_ISCARRAY_RO(a)) {
        PyErr_Format(PyExc_TypeError, "encode_blocks: %s is %R%s, expected C-contiguous float32 %s",
                     what, PyArray_DESCR(a), PyArray_ISCARRAY_RO(a) ? "" : " with gaps", shape);
        return NULL;
    }
    if (PyArray_NDIM(a) != ndim) {
        PyErr_Format(PyExc_ValueError, "encode_blocks: %s has %d dimensions, expected %s", what,
                     PyArray_NDIM(a), shape);
        return NULL;
    }
    return a;
}

/* Index of the first element that is infinite, NaN, or below `least`; n where there is none. */
static size_t first_unusable(const float *x, float least, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]) || x[i] < least) return i;
    return n;
}

static PyObject *raise_unusable(const char *what, const float *x, size_t index, size_t cols,
                                int ndim, const char *expected) {
    PyObject *value = PyFloat_FromDouble((double)x[index]);
    if (value && ndim == 2)
        PyErr_Format(PyExc_ValueError, "encode_blocks: %s[%zu, %zu] is %R, expected %s", what,
                     index / cols, index % cols, value, expected);
    else if (value)
        PyErr_Format(PyExc_ValueError, "encode_blocks: %s[%zu] is %R, expected %s", what, index,
                     value, expected);
    Py_XDECREF(value);
    return NULL;
}

const char q35_py_encode_blocks_doc[] =
    "encode_blocks(name, x, importance=None) -> uint8 [rows, bytes of a row]\n\n"
    "Blocks that come close to x float32 [rows, n]: the sum of importance[i] (x[r, i] - y[r, "
    "i])^2\n"
    "is made small; importance float32 [n], None: all alike. ValueError where the type is not\n"
    "encodable or a number is not finite, with its index. The GIL is dropped meanwhile.";

PyObject *q35_py_encode_blocks(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    static char *names[] = {"name", "x", "importance", NULL};
    const char *name;
    PyObject *x_object, *importance_object = Py_None;
    PyArrayObject *x, *importance = NULL;
    q35_dtype dtype;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO|O:encode_blocks", names, &name, &x_object,
                                     &importance_object) ||
        !(x = float_array(x_object, "x", 2)) ||
        (importance_object != Py_None &&
         !(importance = float_array(importance_object, "importance", 1))) ||
        find_format("encode_blocks", name, PyArray_DIM(x, 1), &dtype))
        return NULL;
    const npy_intp rows = PyArray_DIM(x, 0), n = PyArray_DIM(x, 1);
    if (!q35_formats[dtype].encodable)
        return PyErr_Format(PyExc_ValueError, "encode_blocks: %s can only be decoded", name);
    if (importance && PyArray_DIM(importance, 0) != n)
        return PyErr_Format(
            PyExc_ValueError,
            "encode_blocks: importance has %zd elements, expected %zd: one a column",
            (Py_ssize_t)PyArray_DIM(importance, 0), (Py_ssize_t)n);

    npy_intp shape[2] = {rows, (npy_intp)q35_row_bytes(dtype, (size_t)n)};
    PyObject *result = PyArray_SimpleNew(2, shape, NPY_UINT8);
    if (!result) return NULL;
    const float *values = PyArray_DATA(x), *weights = importance ? PyArray_DATA(importance) : NULL;
    uint8_t *y = PyArray_DATA((PyArrayObject *)result);
    const size_t count = (size_t)rows * (size_t)n;
    size_t bad_value, bad_weight = (size_t)n;
    Py_BEGIN_ALLOW_THREADS;
    bad_value = first_unusable(values, -INFINITY, count);
    if (weights) bad_weight = first_unusable(weights, 0, (size_t)n);
    if (bad_value == count && bad_weight == (size_t)n)
        for (npy_intp r = 0; r < rows; r++)
            q35_encode(y + r * shape[1], dtype, values + r * n, weights, (size_t)n);
    Py_END_ALLOW_THREADS;
    if (bad_value == count && bad_weight == (size_t)n) return result;
    Py_DECREF(result);
    if (bad_value < count)
        return raise_unusable("x", values, bad_value, (size_t)n, 2, "a finite number");
    return raise_unusable("importance", weights, bad_weight, 1, 1, "a finite number, 0 or above");
}
