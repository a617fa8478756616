/* model_type.c: _core.Model: a geometry dict and named arrays become a bound model. */
#include "py.h"

#include <string.h>

typedef struct tensor_source {
    PyObject *mapping, *arrays, *names; /* where to look; where arrays, and names, are kept */
} tensor_source;

static q35_dtype block_type(const char *name) {
    q35_dtype type = Q35_DTYPES;
    while (type < Q35_FORMATS && strcmp(q35_formats[type].name, name) != 0) type++;
    return type;
}

/* A matrix in blocks, (type, uint8 [rows, bytes of a row], whether a file is mapped there); nonzero
   with an exception set. */
static int blocks_lookup(PyObject *pair, const char *name, qwen35_tensor *tensor) {
    const char *type;
    PyArrayObject *array;
    if (!PyArg_ParseTuple(pair, "sO!|p", &type, &PyArray_Type, &array, &tensor->mapped)) return 1;
    tensor->dtype = block_type(type);
    if (tensor->dtype == Q35_FORMATS) {
        PyErr_Format(PyExc_ValueError, "tensor %s: no block type '%s'", name, type);
        return 1;
    }
    const q35_format *format = &q35_formats[tensor->dtype];
    if (PyArray_TYPE(array) != NPY_UINT8 || PyArray_NDIM(array) != 2 ||
        !PyArray_IS_C_CONTIGUOUS(array) || (size_t)PyArray_DIM(array, 1) % format->bytes) {
        PyErr_Format(PyExc_ValueError,
                     "tensor %s: expected uint8 [rows, bytes of %s blocks], C-contiguous", name,
                     type);
        return 1;
    }
    tensor->data = PyArray_DATA(array);
    tensor->rank = 2;
    tensor->shape[0] = (size_t)PyArray_DIM(array, 0);
    tensor->shape[1] = (size_t)PyArray_DIM(array, 1) / format->bytes * format->elements;
    return 0;
}

/* Gives C the bytes of one array, or fails with an exception set where the array is not what C can
 * read. */
static int array_lookup(const tensor_source *source, const char *name, qwen35_tensor *tensor) {
    tensor->mapped = 0;
    PyObject *item = PyMapping_GetItemString(source->mapping, name);
    if (!item) {
        if (PyErr_ExceptionMatches(PyExc_KeyError)) PyErr_Clear();
        return 1;
    }
    int kept = PyList_Append(source->arrays, item);
    Py_DECREF(item);
    if (kept) return 1;
    if (PyTuple_Check(item)) return blocks_lookup(item, name, tensor);
    PyArrayObject *array = (PyArrayObject *)item;
    int type = PyArray_Check(item) ? PyArray_TYPE(array) : NPY_NOTYPE;
    if (type != NPY_FLOAT32 && type != NPY_FLOAT16 && type != NPY_UINT16) {
        PyErr_Format(PyExc_TypeError,
                     "tensor %s: expected an array of float32, float16, or bfloat16 seen as uint16",
                     name);
        return 1;
    }
    if (!PyArray_IS_C_CONTIGUOUS(array) || !PyArray_ISALIGNED(array) ||
        !PyArray_ISNOTSWAPPED(array) || PyArray_NDIM(array) > QWEN35_MAX_RANK) {
        PyErr_Format(
            PyExc_ValueError,
            "tensor %s: expected a C-contiguous, aligned, native array of at most %d dimensions",
            name, QWEN35_MAX_RANK);
        return 1;
    }
    tensor->data = PyArray_DATA(array);
    tensor->dtype = type == NPY_FLOAT32 ? Q35_F32 : type == NPY_FLOAT16 ? Q35_F16 : Q35_BF16;
    tensor->rank = PyArray_NDIM(array);
    for (int i = 0; i < tensor->rank; i++) tensor->shape[i] = (size_t)PyArray_DIM(array, i);
    return 0;
}

static int lookup(void *arg, const char *name, qwen35_tensor *tensor) {
    const tensor_source *source = arg;
    if (array_lookup(source, name, tensor)) return 1;
    PyObject *address = PyLong_FromVoidPtr((void *)tensor->data),
             *text = PyUnicode_FromString(name);
    int failed = !address || !text || PyDict_SetItem(source->names, address, text);
    Py_XDECREF(address);
    Py_XDECREF(text);
    return failed;
}

PyDoc_STRVAR(model_doc,
             "Model(geometry, tensors, *, threads=1, kv_dtype='float16', screen=False, "
             "progress=None)\n\n"
             "Weights bound to names, matrices of blocks laid out for the processor meanwhile: "
             "progress(done_bytes, total_bytes) tells how far. Immutable; shared by threads and "
             "sessions.");

/* The GIL is dropped; signals are looked for. 0, or -1 with an exception. */
static int pack(ModelObject *self, module_state *state, PyObject *progress) {
    watch w = {.progress = progress};
    qwen35_status status = {0};
    qwen35_watch seen = {q35_watch_poll, progress ? q35_watch_progress : NULL, &w};
    w.thread = PyEval_SaveThread();
    qwen35_model_pack(self->model, &seen, &status);
    PyEval_RestoreThread(w.thread);
    if (!status.code) return 0;
    if (!w.raised) q35_raise(state, &status);
    return -1;
}

/* Lets the arrays go that the core has copies of, but for their addresses among the names. */
static int let_arrays_go(ModelObject *self) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(self->arrays); i++) {
        PyObject *item = PyList_GET_ITEM(self->arrays, i);
        if (!PyTuple_Check(item)) continue;
        PyArrayObject *array = (PyArrayObject *)PyTuple_GET_ITEM(item, 1);
        size_t shape[2];
        if (!qwen35_model_read(self->model, PyArray_DATA(array), shape, NULL)) continue;
        Py_INCREF(Py_None);
        if (PyList_SetItem(self->arrays, i, Py_None)) return -1;
    }
    return 0;
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"geometry", "tensors",  "threads", "kv_dtype",
                            "screen",   "progress", NULL};
    PyObject *geometry, *tensors, *progress = Py_None;
    int threads = 1, screen = 0;
    const char *kv_name = "float16";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$ispO:Model", names, &geometry, &tensors,
                                     &threads, &kv_name, &screen, &progress))
        return NULL;
    q35_dtype kv_dtype;
    if (q35_dtype_by_name(kv_name, &kv_dtype)) return NULL;
    qwen35_geometry g;
    geometry_owner owner;
    ModelObject *self = NULL;
    if (q35_geometry_parse(geometry, &g, &owner)) goto done;
    self = (ModelObject *)type->tp_alloc(type, 0);
    if (!self) goto done;
    self->arrays = PyList_New(0);
    self->names = PyDict_New();
    if (!self->arrays || !self->names) goto fail;
    tensor_source source = {tensors, self->arrays, self->names};
    qwen35_status status = {0};
    self->model = qwen35_model_new(&g, lookup, &source, threads, kv_dtype, &status);
    if (self->model && screen && qwen35_model_screen(self->model, &status)) {
        q35_raise(PyType_GetModuleState(type), &status);
        goto fail;
    }
    if (!self->model && !PyErr_Occurred()) q35_raise(PyType_GetModuleState(type), &status);
    if (self->model &&
        !pack(self, PyType_GetModuleState(type), progress == Py_None ? NULL : progress) &&
        !let_arrays_go(self))
        goto done;
fail:
    Py_CLEAR(self);
done:
    q35_geometry_clear(&owner);
    return (PyObject *)self;
}

static int model_traverse(ModelObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->arrays);
    Py_VISIT(self->names);
    return 0;
}

/* No tp_clear: the arrays must live as long as the model that reads them, and they cannot refer
 * back to it. */
static void model_dealloc(ModelObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    qwen35_model_free(self->model);
    Py_XDECREF(self->arrays);
    Py_XDECREF(self->names);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *model_threads(ModelObject *self, void *closure) {
    (void)closure;
    return PyLong_FromLong(qwen35_model_threads(self->model));
}

PyDoc_STRVAR(memory_doc, "memory() -> dict[str, int]\n\nBytes of weights, owned vectors, K/V per "
                         "token, state of one session, scratch, screen.");

static PyObject *model_memory(ModelObject *self, PyObject *ignored) {
    (void)ignored;
    qwen35_memory m;
    qwen35_model_memory(self->model, &m);
    return Py_BuildValue("{s:n,s:n,s:n,s:n,s:n,s:n}", "weights", (Py_ssize_t)m.weights, "owned",
                         (Py_ssize_t)m.owned, "kv_per_token", (Py_ssize_t)m.kv_per_token, "state",
                         (Py_ssize_t)m.state, "scratch", (Py_ssize_t)m.scratch, "screen",
                         (Py_ssize_t)m.screen);
}

static PyObject *model_screened(ModelObject *self, void *closure) {
    (void)closure;
    size_t chosen, given;
    qwen35_model_screened(self->model, &chosen, &given);
    return Py_BuildValue("(nn)", (Py_ssize_t)chosen, (Py_ssize_t)given);
}

/* Patches of all grids, in `total`; -1 with an exception where a grid is not one. */
static int check_grids(PyArrayObject *grids, size_t *patches) {
    const npy_intp *g = PyArray_DATA(grids);
    npy_intp n = PyArray_SIZE(grids);
    *patches = 0;
    if (n == 0 || PyArray_DIM(grids, PyArray_NDIM(grids) - 1) != 3) {
        PyErr_SetString(PyExc_ValueError, "grid_thw: expected [3] or [m, 3]: time, height, width");
        return -1;
    }
    for (npy_intp i = 0; i < n; i += 3) {
        size_t area, count;
        if (g[i] < 1 || g[i + 1] < 1 || g[i + 2] < 1 ||
            __builtin_mul_overflow((size_t)g[i + 1], (size_t)g[i + 2], &area) ||
            __builtin_mul_overflow((size_t)g[i], area, &count) ||
            __builtin_add_overflow(*patches, count, patches)) {
            PyErr_Format(PyExc_ValueError, "grid_thw[%zd]: expected numbers from 1 up", i / 3);
            return -1;
        }
    }
    return 0;
}

/* Every grid's features into `features`, with the GIL dropped. 0, or -1 with an exception. */
static int encode_grids(ModelObject *self, const float *pixels, const npy_intp *grids, npy_intp n,
                        float *features, PyObject *poll) {
    watch w = {.poll = poll};
    qwen35_status status = {0};
    w.thread = PyEval_SaveThread();
    for (npy_intp i = 0; i < n && !status.code; i += 3) {
        size_t grid[3] = {(size_t)grids[i], (size_t)grids[i + 1], (size_t)grids[i + 2]};
        qwen35_vision_encode(self->model, pixels, grid, features, q35_watch_poll, &w, &status);
        pixels += grid[0] * grid[1] * grid[2] * qwen35_vision_patch_floats(self->model);
        features +=
            qwen35_vision_tokens(self->model, grid) * qwen35_vision_feature_floats(self->model);
    }
    PyEval_RestoreThread(w.thread);
    if (!status.code) return 0;
    if (!w.raised) q35_raise(q35_state_of((PyObject *)self), &status);
    return -1;
}

PyObject *q35_encode_pixels(ModelObject *self, PyObject *pixels_object, PyObject *grids_object,
                            PyObject *poll) {
    if (!qwen35_has_vision(self->model)) {
        PyErr_SetString(PyExc_ValueError, "pixels: the model was made without a vision tower");
        return NULL;
    }
    PyArrayObject *features = NULL, *grids = NULL;
    PyArrayObject *pixels =
        (PyArrayObject *)PyArray_FROMANY(pixels_object, NPY_FLOAT32, 2, 2, NPY_ARRAY_IN_ARRAY);
    if (pixels)
        grids = (PyArrayObject *)PyArray_FROMANY(grids_object, NPY_INTP, 1, 2, NPY_ARRAY_IN_ARRAY);
    size_t patches, width = qwen35_vision_patch_floats(self->model), tokens = 0;
    if (!grids || check_grids(grids, &patches)) goto done;
    if ((size_t)PyArray_DIM(pixels, 0) != patches || (size_t)PyArray_DIM(pixels, 1) != width) {
        PyErr_Format(PyExc_ValueError, "pixels: shape [%zd, %zd], expected [%zu, %zu] by grid_thw",
                     PyArray_DIM(pixels, 0), PyArray_DIM(pixels, 1), patches, width);
        goto done;
    }
    const npy_intp *g = PyArray_DATA(grids);
    for (npy_intp i = 0; i < PyArray_SIZE(grids); i += 3)
        tokens += qwen35_vision_tokens(
            self->model, (size_t[3]){(size_t)g[i], (size_t)g[i + 1], (size_t)g[i + 2]});
    size_t D = qwen35_model_width(self->model);
    npy_intp parts = (npy_intp)(qwen35_vision_feature_floats(self->model) / D);
    npy_intp shape[3] = {(npy_intp)tokens, parts, (npy_intp)D};
    features = (PyArrayObject *)PyArray_SimpleNew(3, shape, NPY_FLOAT32);
    if (features && encode_grids(self, PyArray_DATA(pixels), g, PyArray_SIZE(grids),
                                 PyArray_DATA(features), poll))
        Py_CLEAR(features);
done:
    Py_XDECREF(pixels);
    Py_XDECREF(grids);
    return (PyObject *)features;
}

PyDoc_STRVAR(
    encode_doc,
    "encode_vision(pixels, grid_thw, *, poll=None) -> float32 [n, 1 + DeepStack layers, D]\n\n"
    "Features of the tokens of images or frames: for the embedding, then for each of the "
    "first layers. poll is called every 20 ms; what it raises ends the work.");

static PyObject *model_encode(ModelObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"pixels", "grid_thw", "poll", NULL};
    PyObject *pixels, *grids, *poll = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$O:encode_vision", names, &pixels, &grids,
                                     &poll))
        return NULL;
    return q35_encode_pixels(self, pixels, grids, poll == Py_None ? NULL : poll);
}

static PyObject *model_feature_shape(ModelObject *self, void *closure) {
    (void)closure;
    if (!qwen35_has_vision(self->model)) Py_RETURN_NONE;
    size_t D = qwen35_model_width(self->model);
    return Py_BuildValue("(nn)", (Py_ssize_t)(qwen35_vision_feature_floats(self->model) / D),
                         (Py_ssize_t)D);
}

PyDoc_STRVAR(read_doc,
             "read(name) -> float32 [rows, columns] or None\n\n"
             "The numbers of a matrix whose blocks the core has laid out anew and let go of; None "
             "for any other.");

static PyObject *model_read(ModelObject *self, PyObject *name) {
    PyObject *address, *known;
    Py_ssize_t at = 0;
    while (PyDict_Next(self->names, &at, &address, &known)) {
        int same = PyObject_RichCompareBool(name, known, Py_EQ);
        if (same < 0) return NULL;
        const void *data = same ? PyLong_AsVoidPtr(address) : NULL;
        size_t shape[2];
        if (!same || !qwen35_model_read(self->model, data, shape, NULL)) continue;
        npy_intp dims[2] = {(npy_intp)shape[0], (npy_intp)shape[1]};
        PyObject *array = PyArray_SimpleNew(2, dims, NPY_FLOAT32);
        if (array)
            qwen35_model_read(self->model, data, shape, PyArray_DATA((PyArrayObject *)array));
        return array;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(session_doc,
             "session(context) -> Session\n\nA new timeline of at most `context` tokens.");

static PyObject *model_session(ModelObject *self, PyObject *argument) {
    size_t context = PyLong_AsSize_t(argument);
    if (PyErr_Occurred()) return NULL;
    return q35_session_make(q35_state_of((PyObject *)self), self, context);
}

PyDoc_STRVAR(batch_doc, "batch(size) -> Batch\n\nSteps of up to `size` streams at once.");

static PyObject *model_batch(ModelObject *self, PyObject *argument) {
    size_t size = PyLong_AsSize_t(argument);
    if (size == (size_t)-1 && PyErr_Occurred()) return NULL;
    return q35_batch_make(q35_state_of((PyObject *)self), self, size);
}

static PyMethodDef model_methods[] = {
    {"read", (PyCFunction)model_read, METH_O, read_doc},
    {"memory", (PyCFunction)model_memory, METH_NOARGS, memory_doc},
    {"session", (PyCFunction)model_session, METH_O, session_doc},
    {"batch", (PyCFunction)model_batch, METH_O, batch_doc},
    {"encode_vision", (PyCFunction)(void (*)(void))model_encode, METH_VARARGS | METH_KEYWORDS,
     encode_doc},
    {NULL, NULL, 0, NULL},
};

/* Names of the matrices that `read` gives. */
static PyObject *model_laid_out(ModelObject *self, void *closure) {
    (void)closure;
    PyObject *address, *name, *list = PyList_New(0);
    Py_ssize_t at = 0;
    size_t shape[2];
    while (list && PyDict_Next(self->names, &at, &address, &name))
        if (qwen35_model_read(self->model, PyLong_AsVoidPtr(address), shape, NULL) &&
            PyList_Append(list, name))
            Py_CLEAR(list);
    return list;
}

static PyGetSetDef model_getset[] = {
    {"laid_out", (getter)model_laid_out, NULL,
     "Names of the matrices whose blocks the core has a copy of and let go of.", NULL},
    {"threads", (getter)model_threads, NULL, "Threads of one computation.", NULL},
    {"screened", (getter)model_screened, NULL,
     "Draws that the copy of the head decided, and that it left to the head.", NULL},
    {"feature_shape", (getter)model_feature_shape, NULL,
     "(1 + DeepStack layers, D) of the features of one image token; None without a tower.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot model_slots[] = {
    {Py_tp_doc, (void *)model_doc},
    {Py_tp_new, model_new},
    {Py_tp_dealloc, model_dealloc},
    {Py_tp_traverse, model_traverse},
    {Py_tp_methods, model_methods},
    {Py_tp_getset, model_getset},
    {0, NULL},
};

PyType_Spec q35_model_spec = {
    .name = "qwen35._core.Model",
    .basicsize = sizeof(ModelObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = model_slots,
};
