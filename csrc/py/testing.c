/* testing.c: every kernel of every target, callable on arrays, so that tests compare them with
 * NumPy.
 *
 * Products of matrices of blocks run the way the model runs them, from packing on.
 *
 * Arrays come as C-contiguous in their last dimension; row strides are taken from the array, so
 * that tests can hand in views with gaps. Storage type "bf16" is uint16. */
#include "py.h"

#include <string.h>

#include "../trial.h"

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

static int to_rows(PyObject *object, q35_rows *s) {
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
    "  fix_all y[n] x[n] norm -> (factor,) | dot_pairs y[T,width] w[pairs,2 width] x[T,2 pairs]\n"
    "  x_factor[T] (w_factor[width]) add\n"
    "  where the target has it: pack_fixed y[64,128] factor[64] w[R,n] | dot_fixed sum[T,64] "
    "w[64,128] w_factor[64]\n"
    "  x[T,128] x_factor[T] | dot_stored y[T,R] w[R,n] x[blocks ld,128] x_factor[blocks,ld] add";

PyObject *q35_run_kernel(PyObject *module, PyObject *args) {
    Py_ssize_t given = PyTuple_GET_SIZE(args);
    const char *target = given > 1 ? PyUnicode_AsUTF8(PyTuple_GET_ITEM(args, 0)) : NULL;
    const char *name = target ? PyUnicode_AsUTF8(PyTuple_GET_ITEM(args, 1)) : NULL;
    if (!name) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "run_kernel(target, name, *args)");
        return NULL;
    }
    q35_rows arrays[Q35_TRIAL_ARRAYS];
    double number[Q35_TRIAL_NUMBERS] = {0}, result[2];
    size_t n = 0, numbers = 0;
    for (Py_ssize_t i = 2; i < given; i++) {
        PyObject *item = PyTuple_GET_ITEM(args, i);
        if (PyFloat_Check(item) || PyLong_Check(item)) {
            if (numbers < Q35_TRIAL_NUMBERS) number[numbers++] = PyFloat_AsDouble(item);
        } else if (n == Q35_TRIAL_ARRAYS || to_rows(item, &arrays[n++])) {
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "run_kernel: at most 8 arrays");
            return NULL;
        }
    }
    qwen35_status status = {0};
    if (q35_try_kernel(target, name, arrays, &n, number, result, &status))
        return q35_raise(PyModule_GetState(module), &status);
    if (n == 1) return Py_BuildValue("(d)", result[0]);
    if (n == 2) return Py_BuildValue("(dd)", result[0], result[1]);
    Py_RETURN_NONE;
}

const char q35_run_product_doc[] =
    "run_product(target, type, blocks, x, y, *, packed=True, fine=False, add=False, threads=1,\n"
    "            repeat=1) -> list[float]\n\n"
    "y [T, rows] (+)= x [T, columns] W^T, W uint8 [rows, bytes of a row]: as a model of that type\n"
    "that is not exact; for tests and benchmarks. packed: laid out beforehand, where the type is\n"
    "packable; fine: tokens of 16 bits, of blocks. Returns the seconds of each of `repeat`\n"
    "products, without layout.";

PyObject *q35_run_product(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"target", "type", "blocks",  "x",      "y", "packed",
                            "fine",   "add",  "threads", "repeat", NULL};
    const char *target, *type;
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
    q35_matrix w = {.data = PyArray_DATA(blocks),
                    .dtype = dtype,
                    .rows = (size_t)PyArray_DIM(blocks, 0),
                    .cols = (size_t)PyArray_DIM(x, 1),
                    .integers = 1,
                    .fine = fine};
    qwen35_status status = {0};
    double *seconds = PyMem_New(double, (size_t)repeat);
    if (!seconds) return PyErr_NoMemory();
    int failed =
        q35_try_product(target, &w, PyArray_DATA(x), PyArray_DATA(y), (size_t)PyArray_DIM(x, 0),
                        packed, add, threads, seconds, repeat, &status);
    PyObject *list = failed ? NULL : PyList_New(repeat);
    for (int i = 0; list && i < repeat; i++) {
        PyObject *number = PyFloat_FromDouble(seconds[i]);
        if (!number) Py_CLEAR(list);
        if (list) PyList_SET_ITEM(list, i, number);
    }
    PyMem_Free(seconds);
    return failed ? q35_raise(PyModule_GetState(module), &status) : list;
}

const char q35_run_screen_doc[] =
    "run_screen(target, head, h, *, k=1, margin=0.0, always=()) -> dict\n\n"
    "What a screen of head [V, D] (float32, float16, or bfloat16 seen as uint16) makes of h\n"
    "float32 [D]: approx, reach float32 [V]; rows int32 [n] and chosen float32 [n], their logits;\n"
    "and logits float32 [V], the head's own.";

/* The first n elements; takes the reference. */
static PyObject *first(PyArrayObject *array, size_t n) {
    PyObject *slice = PySequence_GetSlice((PyObject *)array, 0, (Py_ssize_t)n);
    Py_DECREF(array);
    return slice;
}

PyObject *q35_run_screen(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"target", "head", "h", "k", "margin", "always", NULL};
    const char *target;
    PyObject *head, *h, *always_object = NULL;
    q35_rows w, x;
    Py_ssize_t k = 1;
    q35_screening wanted = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sOO|$nfO:run_screen", names, &target, &head, &h,
                                     &k, &wanted.margin, &always_object) ||
        to_rows(head, &w) || to_rows(h, &x))
        return NULL;
    q35_matrix matrix = {.data = w.data, .dtype = w.dtype, .rows = w.rows, .cols = w.cols};
    if (x.dtype != Q35_F32 || x.rows != 1 || x.cols != w.cols || w.stride != w.cols || k < 1 ||
        k > Q35_SCREEN_TOP + 1 || !q35_screenable(&matrix))
        return PyErr_Format(PyExc_ValueError, "run_screen: types or shapes do not fit");
    PyArrayObject *always = always_object ? q35_ids_array(always_object) : NULL, *out[5];
    if (always_object && !always) return NULL;
    wanted.k = (size_t)k;
    if (always) {
        wanted.always = PyArray_DATA(always);
        wanted.n_always = (size_t)PyArray_SIZE(always);
    }
    npy_intp V = (npy_intp)w.rows;
    int there = 1;
    for (int i = 0; i < 5; i++) {
        out[i] = (PyArrayObject *)PyArray_SimpleNew(1, &V, i < 4 ? NPY_FLOAT32 : NPY_INT32);
        there = there && out[i];
    }
    qwen35_status status = {0};
    q35_screen_trial y = {0};
    if (there) {
        y = (q35_screen_trial){PyArray_DATA(out[0]), PyArray_DATA(out[1]), PyArray_DATA(out[2]),
                               PyArray_DATA(out[4]), PyArray_DATA(out[3]), 0};
        q35_try_screen(target, &matrix, x.data, &wanted, &y, &status);
    }
    Py_XDECREF(always);
    if (there && !status.code)
        return Py_BuildValue("{s:N,s:N,s:N,s:N,s:N}", "approx", out[0], "reach", out[1], "logits",
                             out[2], "chosen", first(out[3], y.found), "rows",
                             first(out[4], y.found));
    for (int i = 0; i < 5; i++) Py_XDECREF(out[i]);
    return there ? q35_raise(PyModule_GetState(module), &status) : NULL;
}
