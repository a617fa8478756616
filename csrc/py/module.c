/* module.c: the module itself: state, types, errors, and the choice of kernels at import. */
#define Q35_IMPORTS_NUMPY
#include "py.h"

#include <stdlib.h>
#include <string.h>

void scipy_openblas_set_num_threads(int threads);
char *scipy_openblas_get_config(void);

module_state *q35_state_of(PyObject *self) { return PyType_GetModuleState(Py_TYPE(self)); }

PyObject *q35_raise(module_state *state, const qwen35_status *status) {
    PyObject *error;
    switch (status->code) {
    case Q35_FORMAT: error = state->format_error; break;
    case Q35_MEMORY: error = PyExc_MemoryError; break;
    case Q35_CONTEXT: error = state->context_error; break;
    case Q35_FORKED: error = state->fork_error; break;
    case Q35_ARGUMENT: error = PyExc_ValueError; break;
    default: error = PyExc_RuntimeError; break;
    }
    PyErr_SetString(error, status->message);
    return NULL;
}

int q35_dtype_by_name(const char *name, q35_dtype *dtype) {
    static const struct {
        const char *name;
        q35_dtype dtype;
    } known[] = {
        {"int16", Q35_INT16},   {"float32", Q35_F32}, {"float16", Q35_F16},
        {"bfloat16", Q35_BF16}, {"q8_0", Q35_Q8_0},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(name, known[i].name) == 0) {
            *dtype = known[i].dtype;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError,
                 "kv_dtype='%s': expected 'int16', 'float32', 'float16', 'bfloat16' or 'q8_0'",
                 name);
    return -1;
}

PyDoc_STRVAR(cpu_doc, "cpu() -> dict\n\nInstruction set in use and available, processor features, "
                      "and the BLAS build.");

static PyObject *cpu(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    const char *names[QWEN35_MAX_FEATURES];
    size_t n = qwen35_cpu_features(names);
    PyObject *available = q35_kernel_names(NULL, NULL), *features = PyList_New(0), *result = NULL;
    if (!available || !features) goto done;
    for (size_t i = 0; i < n; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);
        int failed = !name || PyList_Append(features, name);
        Py_XDECREF(name);
        if (failed) goto done;
    }
    result = Py_BuildValue("{s:s,s:s,s:O,s:O,s:s}", "isa", qwen35_target(), "kv_dtype",
                           qwen35_fast_kv_dtype(), "available", available, "features", features,
                           "blas", scipy_openblas_get_config());
done:
    Py_XDECREF(available);
    Py_XDECREF(features);
    return result;
}

static PyMethodDef functions[] = {
    {"cpu", cpu, METH_NOARGS, cpu_doc},
    {"expected_tensors", q35_expected_tensors, METH_O, q35_expected_tensors_doc},
    {"plan_memory", (PyCFunction)(void (*)(void))q35_plan_memory, METH_VARARGS | METH_KEYWORDS,
     q35_plan_memory_doc},
    {"sample", (PyCFunction)(void (*)(void))q35_py_sample, METH_VARARGS | METH_KEYWORDS,
     q35_sample_doc},
    {"kernels", q35_kernel_names, METH_NOARGS, q35_kernel_names_doc},
    {"run_kernel", q35_run_kernel, METH_VARARGS, q35_run_kernel_doc},
    {"run_product", (PyCFunction)(void (*)(void))q35_run_product, METH_VARARGS | METH_KEYWORDS,
     q35_run_product_doc},
    {"run_screen", (PyCFunction)(void (*)(void))q35_run_screen, METH_VARARGS | METH_KEYWORDS,
     q35_run_screen_doc},
    {"formats", q35_py_formats, METH_NOARGS, q35_py_formats_doc},
    {"decode_blocks", q35_py_decode_blocks, METH_VARARGS, q35_py_decode_blocks_doc},
    {"encode_blocks", (PyCFunction)(void (*)(void))q35_py_encode_blocks,
     METH_VARARGS | METH_KEYWORDS, q35_py_encode_blocks_doc},
    {"fitted_bytes", q35_py_fitted_bytes, METH_NOARGS, q35_py_fitted_bytes_doc},
    {"feed_window", q35_py_feed_window, METH_VARARGS, q35_py_feed_window_doc},
    {"polish_window", q35_py_polish_window, METH_VARARGS, q35_py_polish_window_doc},
    {"pack_fitted", q35_py_pack_fitted, METH_VARARGS, q35_py_pack_fitted_doc},
    {NULL, NULL, 0, NULL},
};

/* QWEN35_ISA names a target for tests; one that this machine lacks is an error, not a silent
 * fallback. */
static int select_target(void) {
    const char *name = getenv("QWEN35_ISA");
    if (name && !*name) name = NULL;
    if (qwen35_select_target(name) == 0) return 0;
    PyObject *available = q35_kernel_names(NULL, NULL);
    if (available)
        PyErr_Format(PyExc_ImportError,
                     "QWEN35_ISA=%s: this machine can run %R; unset it to use the best", name,
                     available);
    Py_XDECREF(available);
    return -1;
}

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type) {
    *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *type ? PyModule_AddType(module, *type) : -1;
}

static int load_errors(module_state *state) {
    PyObject *errors = PyImport_ImportModule("qwen35.errors");
    if (!errors) return -1;
    state->format_error = PyObject_GetAttrString(errors, "ModelFormatError");
    state->context_error = PyObject_GetAttrString(errors, "ContextLengthError");
    state->busy_error = PyObject_GetAttrString(errors, "BusyError");
    state->fork_error = PyObject_GetAttrString(errors, "ForkError");
    Py_DECREF(errors);
    return state->format_error && state->context_error && state->busy_error && state->fork_error
               ? 0
               : -1;
}

static int module_exec(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    if (select_target() || load_errors(state)) return -1;
    scipy_openblas_set_num_threads(1);
    if (add_type(module, &q35_model_spec, &state->model_type)) return -1;
    if (add_type(module, &q35_session_spec, &state->session_type)) return -1;
    if (add_type(module, &q35_snapshot_spec, &state->snapshot_type)) return -1;
    if (add_type(module, &q35_stream_spec, &state->stream_type)) return -1;
    return add_type(module, &q35_batch_spec, &state->batch_type);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->model_type);
    Py_VISIT(state->session_type);
    Py_VISIT(state->snapshot_type);
    Py_VISIT(state->stream_type);
    Py_VISIT(state->batch_type);
    Py_VISIT(state->format_error);
    Py_VISIT(state->context_error);
    Py_VISIT(state->busy_error);
    Py_VISIT(state->fork_error);
    return 0;
}

static int module_clear(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->model_type);
    Py_CLEAR(state->session_type);
    Py_CLEAR(state->snapshot_type);
    Py_CLEAR(state->stream_type);
    Py_CLEAR(state->batch_type);
    Py_CLEAR(state->format_error);
    Py_CLEAR(state->context_error);
    Py_CLEAR(state->busy_error);
    Py_CLEAR(state->fork_error);
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

PyDoc_STRVAR(module_doc,
             "The native core: tensors and tokens in, logits and tokens out. See csrc/MODEL.md.");

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,          .m_name = "qwen35._core", .m_doc = module_doc,
    .m_size = sizeof(module_state), .m_methods = functions,   .m_slots = slots,
    .m_traverse = module_traverse,  .m_clear = module_clear,  .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
