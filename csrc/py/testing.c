/* testing.c: every kernel of every target, callable on arrays, so that tests compare them with
 * NumPy.
 *
 * Products of matrices of blocks run the way the model runs them, from packing on.
 *
 * Arrays come as C-contiguous in their last dimension; row strides are taken from the array, so
 * that tests can hand in views with gaps. Storage type "bf16" is uint16. */
#include "py.h"

#include <string.h>

#include "../linear.h"
#include "../mem.h"
#include "../pack.h"

const char q35_kernel_names_doc[] =
    "kernels() -> tuple[str, ...]\n\nTargets this machine can run, best last.";

PyObject *q35_kernel_names(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    const q35_kernels *tables[Q35_MAX_TARGETS];
    size_t n = q35_kernels_available(tables);
    PyObject *names = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; names && i < n; i++) {
        PyObject *name = PyUnicode_FromString(tables[i]->name);
        if (!name) Py_CLEAR(names);
        if (names) PyTuple_SET_ITEM(names, (Py_ssize_t)i, name);
    }
    return names;
}

/* One argument as the kernels see it. */
typedef struct span {
    void *data;
    size_t rows, cols, stride; /* stride in elements */
    q35_dtype dtype;
} span;

static int to_span(PyObject *object, span *s) {
    if (!PyArray_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "run_kernel: expected arrays");
        return -1;
    }
    PyArrayObject *a = (PyArrayObject *)object;
    int type = PyArray_TYPE(a), ndim = PyArray_NDIM(a);
    npy_intp size = PyArray_ITEMSIZE(a);
    if ((type != NPY_FLOAT32 && type != NPY_FLOAT16 && type != NPY_UINT16 && type != NPY_INT16) ||
        ndim < 1 || ndim > 2 ||
        (PyArray_DIM(a, ndim - 1) > 1 && PyArray_STRIDE(a, ndim - 1) != size) ||
        (ndim == 2 && PyArray_DIM(a, 0) > 1 && PyArray_STRIDE(a, 0) < PyArray_DIM(a, 1) * size)) {
        PyErr_SetString(PyExc_ValueError,
                        "run_kernel: expected f32, f16, int16 or uint16 (bf16) rows without gaps");
        return -1;
    }
    s->data = PyArray_DATA(a);
    s->rows = ndim == 2 ? (size_t)PyArray_DIM(a, 0) : 1;
    s->cols = (size_t)PyArray_DIM(a, ndim - 1);
    s->stride = ndim == 2 && s->rows > 1 ? (size_t)(PyArray_STRIDE(a, 0) / size) : s->cols;
    s->dtype = type == NPY_FLOAT32 ? Q35_F32 : type == NPY_FLOAT16 ? Q35_F16 : Q35_BF16;
    return 0;
}

const char q35_run_kernel_doc[] =
    "run_kernel(target, name, *args)\n\n"
    "Call one kernel on arrays, for tests; outputs are written in place.\n"
    "  expand y[n] x[n] | narrow y[n] x[n] | dot y[T,R] w[R,n] x[T,n] add | mix y[T,n] p[T,S] "
    "v[S,n]\n"
    "  delta out[T,cols] state[Dk,cols] q[T,Dk] k[T,Dk] v[T,cols] decay[T] beta[T]\n"
    "  rms_norm y[n] x[n] scale[n] eps | l2_norm x[n] scale | silu_mul y[n] gate[n] up[n]\n"
    "  sigmoid_mul y[n] gate[n] x[n] | conv_silu y[n] taps[K,n] w[K,n] | softmax_step s[n] m -> "
    "(m', sum)\n"
    "  scale x[n] a | exp y[n] x[n] | layer_norm y[n] x[n] scale[n] shift[n] eps\n"
    "  gelu_bias x[n] bias[n] | add y[n] x[n] | fix y[n] factor[blocks] x[n]\n"
    "  where the target has it: mix_narrow y[T,n] p[T,2 pairs] v[pairs,2 n]\n"
    "  dot_fixed y[T,R] w[pairs,64] w_factor[blocks,32] x[T,2 pairs] x_factor[T,blocks] n add";

static PyObject *call(const q35_kernels *k, const char *name, const span *a, size_t n,
                      const double *number) {
#define IS(text, count) (strcmp(name, text) == 0 && n == (count))
    if (IS("expand", 2)) {
        k->expand[a[1].dtype](a[0].data, a[1].data, a[1].cols);
    } else if (IS("narrow", 2)) {
        k->narrow[a[0].dtype](a[0].data, a[1].data, a[1].cols);
    } else if (IS("dot", 3)) {
        k->dot[a[1].dtype](a[0].data, a[0].stride, a[1].data, a[1].stride, a[2].data, a[2].stride,
                           a[1].rows, a[2].rows, a[1].cols, number[0] != 0);
    } else if (IS("mix", 3)) {
        k->mix[a[2].dtype](a[0].data, a[0].stride, a[1].data, a[1].stride, a[2].data, a[2].stride,
                           a[1].rows, a[2].rows, a[2].cols);
    } else if (IS("mix_narrow", 3) && k->mix_narrow) {
        k->mix_narrow(a[0].data, a[0].stride, a[1].data, a[1].stride, a[2].data, a[2].stride / 2,
                      a[1].rows, a[2].rows, a[2].cols / 2);
    } else if (IS("fix", 3)) {
        k->fix(a[0].data, a[1].data, a[2].data, a[2].cols);
    } else if (IS("dot_fixed", 5) && k->dot_fixed) {
        k->dot_fixed(a[0].data, a[0].stride, a[1].data, a[2].data, a[3].data, a[3].stride,
                     a[4].data, a[4].stride, a[0].cols, a[3].rows, (size_t)number[0],
                     number[1] != 0);
    } else if (IS("delta", 7)) {
        if (a[1].cols > Q35_DELTA_COLS || a[1].stride != a[1].cols || a[2].stride != a[3].stride)
            return PyErr_Format(
                PyExc_ValueError,
                "delta: state is [Dk, cols <= %d] without gaps, q and k have one stride",
                Q35_DELTA_COLS);
        k->delta(a[0].data, a[0].stride, a[1].data, a[2].data, a[3].data, a[2].stride, a[4].data,
                 a[4].stride, a[5].data, a[6].data, a[2].rows, a[1].rows, a[1].cols);
    } else if (IS("rms_norm", 3)) {
        k->rms_norm(a[0].data, a[1].data, a[2].data, (float)number[0], a[1].cols);
    } else if (IS("layer_norm", 4)) {
        k->layer_norm(a[0].data, a[1].data, a[2].data, a[3].data, (float)number[0], a[1].cols);
    } else if (IS("gelu_bias", 2)) {
        k->gelu_bias(a[0].data, a[1].data, a[0].cols);
    } else if (IS("add", 2)) {
        k->add(a[0].data, a[1].data, a[0].cols);
    } else if (IS("l2_norm", 1)) {
        k->l2_norm(a[0].data, (float)number[0], a[0].cols);
    } else if (IS("silu_mul", 3)) {
        k->silu_mul(a[0].data, a[1].data, a[2].data, a[1].cols);
    } else if (IS("sigmoid_mul", 3)) {
        k->sigmoid_mul(a[0].data, a[1].data, a[2].data, a[1].cols);
    } else if (IS("conv_silu", 3)) {
        const float *taps[Q35_MAX_TAPS];
        if (a[1].rows > Q35_MAX_TAPS)
            return PyErr_Format(PyExc_ValueError, "conv_silu: %zu taps, at most %d", a[1].rows,
                                Q35_MAX_TAPS);
        for (size_t i = 0; i < a[1].rows; i++) taps[i] = (const float *)a[1].data + i * a[1].stride;
        k->conv_silu(a[0].data, taps, a[2].data, a[2].stride, a[1].rows, a[1].cols);
    } else if (IS("softmax_step", 1)) {
        float sum, top = k->softmax_step(a[0].data, a[0].cols, (float)number[0], &sum);
        return Py_BuildValue("(dd)", (double)top, (double)sum);
    } else if (IS("scale", 1)) {
        k->scale(a[0].data, (float)number[0], a[0].cols);
    } else if (IS("exp", 2)) {
        k->exp(a[0].data, a[1].data, a[1].cols);
    } else {
        return PyErr_Format(PyExc_ValueError, "run_kernel: no kernel '%s' of %zu arrays", name, n);
    }
    Py_RETURN_NONE;
}

PyObject *q35_run_kernel(PyObject *module, PyObject *args) {
    (void)module;
    const q35_kernels *tables[Q35_MAX_TARGETS];
    size_t n_tables = q35_kernels_available(tables), n = 0;
    Py_ssize_t given = PyTuple_GET_SIZE(args);
    const char *target = given > 1 ? PyUnicode_AsUTF8(PyTuple_GET_ITEM(args, 0)) : NULL;
    const char *name = target ? PyUnicode_AsUTF8(PyTuple_GET_ITEM(args, 1)) : NULL;
    if (!name) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "run_kernel(target, name, *args)");
        return NULL;
    }
    span spans[8];
    double number[2] = {0};
    size_t numbers = 0;
    for (Py_ssize_t i = 2; i < given; i++) {
        PyObject *item = PyTuple_GET_ITEM(args, i);
        if (PyFloat_Check(item) || PyLong_Check(item)) {
            if (numbers < 2) number[numbers++] = PyFloat_AsDouble(item);
        } else if (n == 8 || to_span(item, &spans[n++])) {
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "run_kernel: at most 8 arrays");
            return NULL;
        }
    }
    for (size_t i = 0; i < n_tables; i++)
        if (strcmp(tables[i]->name, target) == 0) return call(tables[i], name, spans, n, number);
    return PyErr_Format(PyExc_ValueError, "run_kernel: this machine has no target '%s'", target);
}

const char q35_run_product_doc[] =
    "run_product(target, type, blocks, x, y, *, packed=True, fine=False, add=False, threads=1,\n"
    "            repeat=1) -> list[float]\n\n"
    "y [T, rows] (+)= x [T, columns] W^T, W uint8 [rows, bytes of a row]: blocks as integers,\n"
    "'f32', 'f16' and 'bf16' in float32; for tests and benchmarks. packed: laid out beforehand,\n"
    "where the type is packable; fine: tokens of 16 bits. Returns the seconds of each of `repeat`\n"
    "products, without layout.";

/* With the target's kernels in place of the process's own; seconds [repeat]. */
static int multiply(q35_matrix *w, const float *x, float *y, size_t T, int packed, int add,
                    int threads, double *seconds, int repeat, qwen35_status *status) {
    q35_team team;
    q35_pool *pool = q35_pool_new(threads, status);
    q35_team_init(&team, pool, NULL, NULL);
    uint8_t *bytes = NULL;
    float *memory = q35_alloc(q35_linear_floats(w->cols, T, threads), 4, "scratch", status);
    if (packed && q35_packable(w->dtype)) {
        bytes = q35_alloc(q35_packed_bytes(w), 1, "packed weights", status);
        if (bytes) q35_pack(&team, w, bytes);
        w->packed = bytes;
    }
    q35_product product = {w, y, w->rows};
    for (int i = 0; i < repeat && !status->code; i++) {
        const double start = q35_monotonic_s();
        q35_linear(&team, &product, 1, x, w->cols, T, add, memory);
        seconds[i] = q35_monotonic_s() - start;
    }
    q35_pool_free(pool);
    q35_free(bytes);
    q35_free(memory);
    return status->code;
}

PyObject *q35_run_product(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"target", "type", "blocks",  "x",      "y", "packed",
                            "fine",   "add",  "threads", "repeat", NULL};
    const char *target, *type, *own = q35_kernel->name;
    PyArrayObject *blocks, *x, *y;
    int packed = 1, fine = 0, add = 0, threads = 1, repeat = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ssO!O!O!|$pppii:run_product", names, &target,
                                     &type, &PyArray_Type, &blocks, &PyArray_Type, &x,
                                     &PyArray_Type, &y, &packed, &fine, &add, &threads, &repeat))
        return NULL;
    if (repeat < 1)
        return PyErr_Format(PyExc_ValueError, "run_product: repeat=%d: expected at least 1",
                            repeat);
    q35_dtype dtype = 0;
    while (dtype < Q35_FORMATS && strcmp(q35_formats[dtype].name, type) != 0) dtype++;
    if (dtype == Q35_FORMATS || PyArray_NDIM(blocks) != 2 || PyArray_NDIM(x) != 2 ||
        PyArray_NDIM(y) != 2 || PyArray_TYPE(x) != NPY_FLOAT32 || PyArray_TYPE(y) != NPY_FLOAT32 ||
        PyArray_TYPE(blocks) != NPY_UINT8 || !PyArray_IS_C_CONTIGUOUS(blocks) ||
        !PyArray_IS_C_CONTIGUOUS(x) || !PyArray_IS_C_CONTIGUOUS(y) ||
        PyArray_DIM(y, 0) != PyArray_DIM(x, 0) || PyArray_DIM(y, 1) != PyArray_DIM(blocks, 0) ||
        (size_t)PyArray_DIM(x, 1) % q35_formats[dtype].elements ||
        q35_row_bytes(dtype, (size_t)PyArray_DIM(x, 1)) != (size_t)PyArray_DIM(blocks, 1))
        return PyErr_Format(PyExc_ValueError, "run_product: types or shapes do not fit");
    if (q35_kernels_select(target))
        return PyErr_Format(PyExc_ValueError, "run_product: this machine has no target '%s'",
                            target);
    q35_matrix w = {.data = PyArray_DATA(blocks),
                    .dtype = dtype,
                    .rows = (size_t)PyArray_DIM(blocks, 0),
                    .cols = (size_t)PyArray_DIM(x, 1),
                    .integers = dtype >= Q35_DTYPES,
                    .fine = fine};
    qwen35_status status = {0};
    double *seconds = PyMem_New(double, (size_t)repeat);
    if (!seconds) return PyErr_NoMemory();
    multiply(&w, PyArray_DATA(x), PyArray_DATA(y), (size_t)PyArray_DIM(x, 0), packed, add, threads,
             seconds, repeat, &status);
    q35_kernels_select(own);
    PyObject *list = status.code ? NULL : PyList_New(repeat);
    for (int i = 0; list && i < repeat; i++) {
        PyObject *number = PyFloat_FromDouble(seconds[i]);
        if (!number) Py_CLEAR(list);
        if (list) PyList_SET_ITEM(list, i, number);
    }
    PyMem_Free(seconds);
    return status.code ? q35_raise(PyModule_GetState(module), &status) : list;
}
