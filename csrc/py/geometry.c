/* geometry.c: a config's geometry, a dict -> the core's struct, and what follows from it alone: the
 * tensors it asks for, the memory it takes. */
#include "py.h"

#include <string.h>

static int get_size(PyObject *geometry, const char *key, size_t *value) {
    PyObject *item = PyMapping_GetItemString(geometry, key);
    if (!item) return -1;
    *value = PyLong_AsSize_t(item);
    Py_DECREF(item);
    return PyErr_Occurred() ? -1 : 0;
}

static int get_float(PyObject *geometry, const char *key, float *value) {
    PyObject *item = PyMapping_GetItemString(geometry, key);
    if (!item) return -1;
    *value = (float)PyFloat_AsDouble(item);
    Py_DECREF(item);
    return PyErr_Occurred() ? -1 : 0;
}

/* What is absent is false. */
static int get_flag(PyObject *geometry, const char *key, int *flag) {
    PyObject *item = PyMapping_GetItemString(geometry, key);
    *flag = 0;
    if (!item) {
        if (!PyErr_ExceptionMatches(PyExc_KeyError)) return -1;
        PyErr_Clear();
        return 0;
    }
    *flag = PyObject_IsTrue(item);
    Py_DECREF(item);
    return *flag < 0 ? -1 : 0;
}

static int get_kinds(PyObject *geometry, qwen35_geometry *g, uint8_t **kinds) {
    PyObject *types = PyMapping_GetItemString(geometry, "layer_types");
    PyObject *list = types ? PySequence_Fast(types, "layer_types: expected a sequence") : NULL;
    Py_XDECREF(types);
    if (!list) return -1;
    g->L = (size_t)PySequence_Fast_GET_SIZE(list);
    *kinds = PyMem_Calloc(g->L + 1, 1);
    if (!*kinds) PyErr_NoMemory();
    for (size_t l = 0; *kinds && l < g->L; l++) {
        const char *name = PyUnicode_AsUTF8(PySequence_Fast_GET_ITEM(list, (Py_ssize_t)l));
        if (!name) break;
        (*kinds)[l] = strcmp(name, "full_attention") == 0 ? QWEN35_FULL : QWEN35_LINEAR;
        if ((*kinds)[l] == QWEN35_LINEAR && strcmp(name, "linear_attention") != 0)
            PyErr_Format(PyExc_ValueError,
                         "layer_types[%zu]: '%s' is neither full_attention nor linear_attention", l,
                         name);
        if (PyErr_Occurred()) break;
    }
    Py_DECREF(list);
    g->kinds = *kinds;
    return PyErr_Occurred() ? -1 : 0;
}

static PyArrayObject *get_vector(PyObject *dict, const char *key, int type) {
    PyObject *item = PyMapping_GetItemString(dict, key);
    if (!item) return NULL;
    PyObject *array = PyArray_FROMANY(item, type, 1, 1, NPY_ARRAY_IN_ARRAY);
    Py_DECREF(item);
    return (PyArrayObject *)array;
}

static int get_rope(PyObject *geometry, qwen35_geometry *g, PyArrayObject **inv_freq) {
    PyObject *section = PyMapping_GetItemString(geometry, "mrope_section");
    PyObject *tuple = section ? PySequence_Tuple(section) : NULL;
    Py_XDECREF(section);
    Py_ssize_t s[3] = {0};
    int parsed = tuple && PyArg_ParseTuple(tuple, "nnn;mrope_section", &s[0], &s[1], &s[2]);
    Py_XDECREF(tuple);
    if (!parsed) return -1;
    for (int i = 0; i < 3; i++) g->mrope_section[i] = (size_t)s[i];
    *inv_freq = get_vector(geometry, "inv_freq", NPY_FLOAT32);
    if (!*inv_freq) return -1;
    g->inv_freq = PyArray_DATA(*inv_freq);
    g->Dr = 2 * (size_t)PyArray_SIZE(*inv_freq);
    return get_float(geometry, "rope_attention_scaling", &g->rope_scaling);
}

void q35_geometry_clear(geometry_owner *owner) {
    PyMem_Free(owner->kinds);
    Py_XDECREF(owner->inv_freq);
    Py_XDECREF(owner->vision_inv_freq);
    Py_XDECREF(owner->deep);
}

typedef struct size_field {
    const char *key;
    size_t *value;
} size_field;

static int get_sizes(PyObject *dict, const size_field *fields, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (get_size(dict, fields[i].key, fields[i].value)) return -1;
    return 0;
}

/* The entry "vision", absent or None for a text model. */
static int vision_parse(PyObject *geometry, qwen35_geometry *g, geometry_owner *owner) {
    qwen35_vision_geometry *v = &owner->vision;
    PyObject *dict = PyMapping_GetItemString(geometry, "vision");
    if (!dict) {
        if (!PyErr_ExceptionMatches(PyExc_KeyError)) return -1;
        PyErr_Clear();
        return 0;
    }
    if (dict == Py_None) {
        Py_DECREF(dict);
        return 0;
    }
    size_t image_token, video_token, exact;
    size_field sizes[] = {
        {"hidden_size", &v->D},
        {"intermediate_size", &v->F},
        {"depth", &v->L},
        {"num_heads", &v->H},
        {"in_channels", &v->channels},
        {"patch_size", &v->patch},
        {"temporal_patch_size", &v->frames},
        {"spatial_merge_size", &v->merge},
        {"position_side", &v->side},
        {"image_token_id", &image_token},
        {"video_token_id", &video_token},
        {"exact", &exact},
    };
    int failed = get_sizes(dict, sizes, sizeof sizes / sizeof *sizes);
    if (!failed) owner->vision_inv_freq = get_vector(dict, "inv_freq", NPY_FLOAT32);
    if (owner->vision_inv_freq)
        owner->deep = get_vector(dict, "deepstack_visual_indexes", NPY_UINTP);
    Py_DECREF(dict);
    if (failed || !owner->deep) return -1;
    if (!v->H || (size_t)PyArray_SIZE(owner->vision_inv_freq) != v->D / v->H / 4) {
        PyErr_SetString(PyExc_ValueError, "vision: inv_freq must have hidden_size / num_heads / 4");
        return -1;
    }
    v->exact = exact != 0;
    v->image_token = (int32_t)image_token;
    v->video_token = (int32_t)video_token;
    v->inv_freq = PyArray_DATA(owner->vision_inv_freq);
    v->deep = PyArray_DATA(owner->deep);
    v->n_deep = (size_t)PyArray_SIZE(owner->deep);
    g->vision = v;
    return 0;
}

int q35_geometry_parse(PyObject *dict, qwen35_geometry *g, geometry_owner *owner) {
    memset(g, 0, sizeof *g);
    memset(owner, 0, sizeof *owner);
    size_field sizes[] = {
        {"hidden_size", &g->D},
        {"intermediate_size", &g->F},
        {"vocab_size", &g->V},
        {"num_attention_heads", &g->Hq},
        {"num_key_value_heads", &g->Hkv},
        {"head_dim", &g->Dh},
        {"linear_num_key_heads", &g->Hk},
        {"linear_num_value_heads", &g->Hv},
        {"linear_key_head_dim", &g->Dk},
        {"linear_value_head_dim", &g->Dv},
        {"linear_conv_kernel_dim", &g->K},
    };
    if (get_sizes(dict, sizes, sizeof sizes / sizeof *sizes)) return -1;
    if (get_float(dict, "rms_norm_eps", &g->eps)) return -1;
    if (get_flag(dict, "tie_word_embeddings", &g->tied)) return -1;
    if (get_flag(dict, "tiled_value_heads", &g->tiled_heads)) return -1;
    if (get_flag(dict, "integer_products", &g->integers)) return -1;
    if (get_kinds(dict, g, &owner->kinds) || get_rope(dict, g, &owner->inv_freq)) return -1;
    return vision_parse(dict, g, owner);
}

/* ---- expected_tensors ---- */

const char q35_expected_tensors_doc[] =
    "expected_tensors(geometry) -> list[tuple[str, tuple[int, ...]]]\n\n"
    "Name and shape of every tensor a checkpoint of this geometry holds.";

static int collect(void *arg, const char *name, int rank, const size_t *shape) {
    PyObject *dims = PyTuple_New(rank);
    if (!dims) return -1;
    for (int i = 0; i < rank; i++) {
        PyObject *dim = PyLong_FromSize_t(shape[i]);
        if (!dim) {
            Py_DECREF(dims);
            return -1;
        }
        PyTuple_SET_ITEM(dims, i, dim);
    }
    PyObject *entry = Py_BuildValue("(sN)", name, dims);
    int failed = !entry || PyList_Append(arg, entry);
    Py_XDECREF(entry);
    return failed ? -1 : 0;
}

PyObject *q35_expected_tensors(PyObject *module, PyObject *geometry) {
    (void)module;
    qwen35_geometry g;
    geometry_owner owner;
    PyObject *list = NULL;
    if (q35_geometry_parse(geometry, &g, &owner) == 0) {
        list = PyList_New(0);
        if (list && qwen35_expected_tensors(&g, collect, list)) Py_CLEAR(list);
    }
    q35_geometry_clear(&owner);
    return list;
}

/* ---- plan_memory ---- */

const char q35_plan_memory_doc[] =
    "plan_memory(geometry, *, threads=1, kv_dtype='float16') -> dict[str, int]\n\n"
    "What Model.memory() of such a model says, but for its weights.";

PyObject *q35_plan_memory(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"geometry", "threads", "kv_dtype", NULL};
    PyObject *dict;
    int threads = 1;
    const char *kv_name = "float16";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$is:plan_memory", names, &dict, &threads,
                                     &kv_name))
        return NULL;
    q35_dtype kv_dtype;
    if (q35_dtype_by_name(kv_name, &kv_dtype)) return NULL;
    qwen35_geometry g;
    geometry_owner owner;
    PyObject *result = NULL;
    if (q35_geometry_parse(dict, &g, &owner) == 0) {
        qwen35_memory m;
        qwen35_status status = {0};
        if (qwen35_plan_memory(&g, threads, kv_dtype, &m, &status))
            q35_raise(PyModule_GetState(module), &status);
        else
            result =
                Py_BuildValue("{s:n,s:n,s:n,s:n,s:n}", "owned", (Py_ssize_t)m.owned, "kv_per_token",
                              (Py_ssize_t)m.kv_per_token, "state", (Py_ssize_t)m.state, "scratch",
                              (Py_ssize_t)m.scratch, "screen", (Py_ssize_t)m.screen);
    }
    q35_geometry_clear(&owner);
    return result;
}
