/* compensate_py.c: the fit of csrc/compensate.c on arrays: a window of columns of some rows. */
#include "py.h"

#include <string.h>

/* A row of a view: its last axis is contiguous, rows may be apart. */
typedef struct rows_view {
    char *data;
    npy_intp rows, n, stride; /* stride in bytes */
} rows_view;

static int view_of(rows_view *v, PyObject *object, const char *what, int type, int writes) {
    PyArrayObject *a = (PyArrayObject *)object;
    if (!PyArray_Check(object) || PyArray_TYPE(a) != type || PyArray_NDIM(a) != 2 ||
        !PyArray_ISALIGNED(a) || (writes && !PyArray_ISWRITEABLE(a)) ||
        (PyArray_DIM(a, 1) > 1 && PyArray_STRIDE(a, 1) != PyArray_ITEMSIZE(a))) {
        PyErr_Format(PyExc_TypeError, "%s: expected a%s 2-d array of %s with contiguous rows", what,
                     writes ? " writeable" : "", type == NPY_UINT8 ? "uint8" : "float32");
        return -1;
    }
    *v = (rows_view){PyArray_BYTES(a), PyArray_DIM(a, 0), PyArray_DIM(a, 1), PyArray_STRIDE(a, 0)};
    return 0;
}

static int check_shape(const rows_view *v, const char *what, npy_intp rows, npy_intp n) {
    if (v->rows == rows && v->n == n) return 0;
    PyErr_Format(PyExc_ValueError, "%s: shape [%zd, %zd], expected [%zd, %zd]", what, v->rows, v->n,
                 rows, n);
    return -1;
}

/* The square array of a window: [n, n], no gaps. */
static int square_of(rows_view *v, PyObject *object, const char *what, npy_intp n) {
    if (view_of(v, object, what, NPY_FLOAT32, 0) || check_shape(v, what, n, n)) return -1;
    if (n < 2 || v->stride == n * (npy_intp)sizeof(float)) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected no gaps between rows", what);
    return -1;
}

/* The type, and the bytes of the fitted blocks of n columns; -1 where there is no such fit. */
static int type_of(const char *name, npy_intp n, npy_intp limit, q35_dtype *dtype,
                   npy_intp *fitted_bytes) {
    for (int i = 0; i < Q35_FORMATS; i++) {
        const q35_format *f = &q35_formats[i];
        if (strcmp(name, f->name) != 0 || !f->encodable) continue;
        *dtype = (q35_dtype)i;
        *fitted_bytes = n / (npy_intp)f->elements * (npy_intp)q35_fitted_bytes();
        if (n > 0 && n <= limit && n % (npy_intp)f->elements == 0) return 0;
        PyErr_Format(PyExc_ValueError, "%zd columns of %s: expected whole blocks of %zu%s", n, name,
                     f->elements, limit == 256 ? ", 256 columns at most" : "");
        return -1;
    }
    PyErr_Format(PyExc_ValueError, "'%s': no type that can be encoded", name);
    return -1;
}

const char q35_py_fitted_bytes_doc[] =
    "fitted_bytes() -> int\n\nBytes of a fitted block, whatever its type.";

PyObject *q35_py_fitted_bytes(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyLong_FromSize_t(q35_fitted_bytes());
}

const char q35_py_feed_window_doc[] =
    "feed_window(type, fitted, error, x, fed, importance, u)\n\n"
    "Fits blocks to a window of n columns, each column after the errors before it. Fills fitted\n"
    "uint8 [rows, blocks * fitted_bytes()] and error = x - y float32 [rows, n].";

PyObject *q35_py_feed_window(PyObject *module, PyObject *args) {
    (void)module;
    const char *name;
    PyObject *o[6];
    rows_view fitted, error, x, fed, importance, u;
    q35_dtype dtype;
    npy_intp bytes;
    if (!PyArg_ParseTuple(args, "sOOOOOO:feed_window", &name, &o[0], &o[1], &o[2], &o[3], &o[4],
                          &o[5]) ||
        view_of(&x, o[2], "x", NPY_FLOAT32, 0) || type_of(name, x.n, 256, &dtype, &bytes) ||
        view_of(&fitted, o[0], "fitted", NPY_UINT8, 1) ||
        view_of(&error, o[1], "error", NPY_FLOAT32, 1) ||
        view_of(&fed, o[3], "fed", NPY_FLOAT32, 0) ||
        view_of(&importance, o[4], "importance", NPY_FLOAT32, 0) || square_of(&u, o[5], "u", x.n) ||
        check_shape(&fitted, "fitted", x.rows, bytes) ||
        check_shape(&error, "error", x.rows, x.n) || check_shape(&fed, "fed", x.rows, x.n) ||
        check_shape(&importance, "importance", 1, x.n))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    for (npy_intp r = 0; r < x.rows; r++)
        q35_feed_window((q35_fitted *)(fitted.data + r * fitted.stride),
                        (float *)(error.data + r * error.stride), dtype,
                        (const float *)(x.data + r * x.stride),
                        (const float *)(fed.data + r * fed.stride), (const float *)importance.data,
                        (const float *)u.data, (size_t)x.n);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

const char q35_py_polish_window_doc[] =
    "polish_window(type, fitted, error, gradient, h, sweeps)\n\n"
    "Moves codes and scales of a window to where error^T H error is least. fitted, error and\n"
    "gradient (H error, float32 [rows, n]) follow.";

PyObject *q35_py_polish_window(PyObject *module, PyObject *args) {
    (void)module;
    const char *name;
    PyObject *o[4];
    int sweeps;
    rows_view fitted, error, gradient, h;
    q35_dtype dtype;
    npy_intp bytes;
    if (!PyArg_ParseTuple(args, "sOOOOi:polish_window", &name, &o[0], &o[1], &o[2], &o[3],
                          &sweeps) ||
        view_of(&error, o[1], "error", NPY_FLOAT32, 1) ||
        type_of(name, error.n, 256, &dtype, &bytes) ||
        view_of(&fitted, o[0], "fitted", NPY_UINT8, 1) ||
        view_of(&gradient, o[2], "gradient", NPY_FLOAT32, 1) || square_of(&h, o[3], "h", error.n) ||
        check_shape(&fitted, "fitted", error.rows, bytes) ||
        check_shape(&gradient, "gradient", error.rows, error.n))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    for (npy_intp r = 0; r < error.rows; r++)
        q35_polish_window((q35_fitted *)(fitted.data + r * fitted.stride),
                          (float *)(error.data + r * error.stride),
                          (float *)(gradient.data + r * gradient.stride), dtype,
                          (const float *)h.data, (size_t)error.n, sweeps);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

const char q35_py_pack_fitted_doc[] =
    "pack_fitted(type, fitted, n) -> uint8 [rows, bytes of a row]\n\n"
    "The bytes of rows of n columns.";

PyObject *q35_py_pack_fitted(PyObject *module, PyObject *args) {
    (void)module;
    const char *name;
    PyObject *object;
    Py_ssize_t n;
    rows_view fitted;
    q35_dtype dtype;
    npy_intp bytes;
    if (!PyArg_ParseTuple(args, "sOn:pack_fitted", &name, &object, &n) ||
        type_of(name, n, NPY_MAX_INTP, &dtype, &bytes) ||
        view_of(&fitted, object, "fitted", NPY_UINT8, 0) ||
        check_shape(&fitted, "fitted", fitted.rows, bytes))
        return NULL;
    npy_intp shape[2] = {fitted.rows, (npy_intp)q35_row_bytes(dtype, (size_t)n)};
    PyObject *result = PyArray_SimpleNew(2, shape, NPY_UINT8);
    if (!result) return NULL;
    char *out = PyArray_BYTES((PyArrayObject *)result);
    Py_BEGIN_ALLOW_THREADS;
    for (npy_intp r = 0; r < fitted.rows; r++)
        q35_pack_fitted(out + r * shape[1], dtype,
                        (const q35_fitted *)(fitted.data + r * fitted.stride), (size_t)n);
    Py_END_ALLOW_THREADS;
    return result;
}
