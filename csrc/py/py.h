/* py.h: what the files of the binding share: module state, object layouts, error translation. */
#ifndef Q35_PY_H
#define Q35_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL qwen35_numpy_api
#ifndef Q35_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>
#include <stdatomic.h>

#include "../qwen35.h"

typedef struct module_state {
    PyTypeObject *model_type, *session_type, *snapshot_type, *stream_type, *batch_type;
    PyObject *format_error, *context_error, *busy_error, *fork_error; /* classes of qwen35.errors */
} module_state;

typedef struct ModelObject {
    PyObject_HEAD qwen35_model *model;
    PyObject *arrays; /* list: keeps the weights' memory alive */
    PyObject *names;  /* dict: address of a tensor's bytes -> its name */
} ModelObject;

typedef struct SessionObject {
    PyObject_HEAD qwen35_session *session;
    PyObject *model;  /* ModelObject */
    atomic_flag busy; /* set while some thread computes with it */
} SessionObject;

typedef struct SnapshotObject {
    PyObject_HEAD qwen35_snapshot *snapshot;
    PyObject *model; /* its pages have the model's layout */
} SnapshotObject;

module_state *q35_state_of(PyObject *self);
/* Raises the exception that belongs to the status; returns NULL. */
PyObject *q35_raise(module_state *state, const qwen35_status *status);

/* One user at a time: 0, or -1 with BusyError. */
int q35_session_enter(SessionObject *self);
void q35_session_leave(SessionObject *self);

/* Watches a computation from the thread that called Python: signals, cancellation, progress. The
   GIL is not held while C computes, and is taken for each look. */
typedef struct watch {
    PyThreadState *thread;
    atomic_int *cancel; /* may be NULL */
    PyObject *progress; /* callable or NULL */
    PyObject *poll;     /* callable or NULL: what it raises ends the computation */
    PyObject *observe;  /* callable or NULL: told of the input of every matrix product */
    PyObject *names;    /* with it: of the model's tensors, by address */
    int raised;         /* a Python exception is set */
} watch;

int q35_watch_poll(void *arg);
int q35_watch_progress(void *arg, size_t done, size_t total);

/* int32 [T], a copy of its own. */
PyArrayObject *q35_ids_array(PyObject *object);

/* What the struct only points to; released with q35_geometry_clear. */
typedef struct geometry_owner {
    uint8_t *kinds;
    PyArrayObject *inv_freq;
    qwen35_vision_geometry vision;
    PyArrayObject *vision_inv_freq, *deep;
} geometry_owner;

/* -1 with an exception; the owner must be cleared in any case, after the struct's last use. */
int q35_geometry_parse(PyObject *dict, qwen35_geometry *geometry, geometry_owner *owner);
void q35_geometry_clear(geometry_owner *owner);

/* What a call appends: own copies of ids [T] and positions [3, T] (or NULL), so that other threads
   may do what they like, and features [n, feature_floats] (or NULL). */
typedef struct prompt_arrays {
    PyArrayObject *ids, *positions, *features;
} prompt_arrays;

/* None stands for what is not given. 0, or -1 with an exception and everything released. */
int q35_prompt_parse(prompt_arrays *prompt, SessionObject *session, PyObject *ids,
                     PyObject *positions, PyObject *features);
void q35_prompt_clear(prompt_arrays *prompt);
/* The arrays as the core reads them; they must outlive it. */
qwen35_input q35_prompt_input(const prompt_arrays *prompt);

/* Appends with the GIL dropped. 0; -1 with an exception; 1 when cancelled through watch->cancel. */
int q35_append_watched(SessionObject *self, const qwen35_input *input, watch *watch,
                       qwen35_append_options options);

/* Features float32 [n, 1 + DeepStack layers, D] of pixels [sum of t h w, patch floats] and grids
   [3] or [m, 3]; NULL with an exception. */
PyObject *q35_encode_pixels(ModelObject *model, PyObject *pixels, PyObject *grids, PyObject *poll);

PyObject *q35_session_make(module_state *state, ModelObject *model, size_t context);
PyObject *q35_stream_make(SessionObject *self, PyObject *args, PyObject *kwargs);
PyObject *q35_batch_make(module_state *state, ModelObject *model, size_t size);

/* "float32" | "float16" | "bfloat16"; -1 with ValueError otherwise. */
int q35_dtype_by_name(const char *name, q35_dtype *dtype);

extern PyType_Spec q35_model_spec, q35_session_spec, q35_snapshot_spec, q35_stream_spec,
    q35_batch_spec;

/* module-level functions defined beside what they belong to */
PyObject *q35_expected_tensors(PyObject *module, PyObject *geometry);
PyObject *q35_plan_memory(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *q35_py_sample(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *q35_kernel_names(PyObject *module, PyObject *ignored);
PyObject *q35_run_kernel(PyObject *module, PyObject *args);
PyObject *q35_run_product(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *q35_run_screen(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *q35_py_formats(PyObject *module, PyObject *ignored);
PyObject *q35_py_decode_blocks(PyObject *module, PyObject *args);
PyObject *q35_py_encode_blocks(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *q35_py_fitted_bytes(PyObject *module, PyObject *ignored);
PyObject *q35_py_feed_window(PyObject *module, PyObject *args);
PyObject *q35_py_polish_window(PyObject *module, PyObject *args);
PyObject *q35_py_pack_fitted(PyObject *module, PyObject *args);

extern const char q35_expected_tensors_doc[], q35_plan_memory_doc[], q35_sample_doc[],
    q35_kernel_names_doc[], q35_run_kernel_doc[], q35_run_product_doc[], q35_run_screen_doc[],
    q35_py_formats_doc[], q35_py_decode_blocks_doc[], q35_py_encode_blocks_doc[],
    q35_py_fitted_bytes_doc[], q35_py_feed_window_doc[], q35_py_polish_window_doc[],
    q35_py_pack_fitted_doc[];

#endif
