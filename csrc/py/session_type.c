/* session_type.c: _core.Session and _core.Snapshot: one timeline and points in it, with the GIL
 * dropped to compute. */
#include "py.h"

/* ---- shared with stream_type.c ---- */

int q35_session_enter(SessionObject *self) {
    if (!atomic_flag_test_and_set(&self->busy)) return 0;
    PyErr_SetString(q35_state_of((PyObject *)self)->busy_error,
                    "another thread is using this session; give each thread its own "
                    "(model.session(), session.fork())");
    return -1;
}

void q35_session_leave(SessionObject *self) { atomic_flag_clear(&self->busy); }

int q35_watch_poll(void *arg) {
    watch *w = arg;
    if (w->cancel && atomic_load(w->cancel)) return 1;
    PyEval_RestoreThread(w->thread);
    if (PyErr_CheckSignals()) w->raised = 1;
    if (w->poll && !w->raised) {
        PyObject *result = PyObject_CallNoArgs(w->poll);
        if (!result) w->raised = 1;
        Py_XDECREF(result);
    }
    w->thread = PyEval_SaveThread();
    return w->raised || (w->cancel && atomic_load(w->cancel));
}

int q35_watch_progress(void *arg, size_t done, size_t total) {
    watch *w = arg;
    if (!w->progress) return 0;
    PyEval_RestoreThread(w->thread);
    PyObject *result =
        PyObject_CallFunction(w->progress, "nn", (Py_ssize_t)done, (Py_ssize_t)total);
    if (!result) w->raised = 1;
    Py_XDECREF(result);
    w->thread = PyEval_SaveThread();
    return w->raised;
}

/* Shows the callable a view of x; what it does not look at costs nothing more. */
static int show_product(watch *w, const void *weights, const float *x, size_t ldx, size_t T,
                        size_t cols) {
    PyObject *address = PyLong_FromVoidPtr((void *)weights), *result = NULL, *view = NULL;
    PyObject *name = address ? PyDict_GetItemWithError(w->names, address) : NULL;
    npy_intp shape[2] = {(npy_intp)T, (npy_intp)cols};
    npy_intp strides[2] = {(npy_intp)(ldx * sizeof *x), sizeof *x};
    if (name)
        view = PyArray_New(&PyArray_Type, 2, shape, NPY_FLOAT32, strides, (void *)x, 0,
                           NPY_ARRAY_ALIGNED, NULL);
    if (view) result = PyObject_CallFunctionObjArgs(w->observe, name, view, NULL);
    Py_XDECREF(address);
    Py_XDECREF(view);
    Py_XDECREF(result);
    return (name && !result) || PyErr_Occurred();
}

static int watch_observe(void *arg, const void *weights, const float *x, size_t ldx, size_t T,
                         size_t cols) {
    watch *w = arg;
    PyEval_RestoreThread(w->thread);
    w->raised = w->raised || show_product(w, weights, x, ldx, T, cols);
    w->thread = PyEval_SaveThread();
    return w->raised;
}

PyArrayObject *q35_ids_array(PyObject *object) {
    return (PyArrayObject *)PyArray_FROMANY(object, NPY_INT32, 1, 1,
                                            NPY_ARRAY_IN_ARRAY | NPY_ARRAY_ENSURECOPY);
}

void q35_prompt_clear(prompt_arrays *prompt) {
    Py_CLEAR(prompt->ids);
    Py_CLEAR(prompt->positions);
    Py_CLEAR(prompt->features);
}

static int is_given(PyObject *object) { return object && object != Py_None; }

static int parse_positions(prompt_arrays *prompt, PyObject *object) {
    prompt->positions = (PyArrayObject *)PyArray_FROMANY(object, NPY_INT32, 2, 2,
                                                         NPY_ARRAY_IN_ARRAY | NPY_ARRAY_ENSURECOPY);
    if (!prompt->positions) return -1;
    npy_intp rows = PyArray_DIM(prompt->positions, 0), T = PyArray_DIM(prompt->positions, 1);
    if (rows == 3 && T == PyArray_SIZE(prompt->ids)) return 0;
    PyErr_Format(PyExc_ValueError, "position_ids: shape [%zd, %zd], expected [3, %zd]", rows, T,
                 PyArray_SIZE(prompt->ids));
    return -1;
}

static int parse_features(prompt_arrays *prompt, const qwen35_model *model, PyObject *object) {
    if (!qwen35_has_vision(model)) {
        PyErr_SetString(PyExc_ValueError, "features: the model was made without a vision tower");
        return -1;
    }
    prompt->features =
        (PyArrayObject *)PyArray_FROMANY(object, NPY_FLOAT32, 2, 3, NPY_ARRAY_IN_ARRAY);
    if (!prompt->features) return -1;
    npy_intp n = PyArray_DIM(prompt->features, 0), size = PyArray_SIZE(prompt->features);
    size_t width = qwen35_vision_feature_floats(model);
    if (n == 0 || (size_t)(size / n) == width) return 0;
    PyErr_Format(PyExc_ValueError, "features: %zd numbers a token, expected %zu", size / n, width);
    return -1;
}

int q35_prompt_parse(prompt_arrays *prompt, SessionObject *session, PyObject *ids,
                     PyObject *positions, PyObject *features) {
    const qwen35_model *model = ((ModelObject *)session->model)->model;
    memset(prompt, 0, sizeof *prompt);
    prompt->ids = q35_ids_array(ids);
    if (!prompt->ids) return -1;
    if ((is_given(positions) && parse_positions(prompt, positions)) ||
        (is_given(features) && parse_features(prompt, model, features))) {
        q35_prompt_clear(prompt);
        return -1;
    }
    return 0;
}

qwen35_input q35_prompt_input(const prompt_arrays *prompt) {
    size_t T = (size_t)PyArray_SIZE(prompt->ids);
    qwen35_input input = {.ids = PyArray_DATA(prompt->ids), .T = T, .ldp = T};
    if (prompt->positions) input.positions = PyArray_DATA(prompt->positions);
    if (prompt->features) {
        input.features = PyArray_DATA(prompt->features);
        input.n_features = (size_t)PyArray_DIM(prompt->features, 0);
    }
    return input;
}

int q35_append_watched(SessionObject *self, const qwen35_input *input, watch *w,
                       qwen35_append_options options) {
    qwen35_status status = {0};
    options.poll = q35_watch_poll;
    options.progress = q35_watch_progress;
    options.observe = w->observe ? watch_observe : NULL;
    options.arg = w;
    w->thread = PyEval_SaveThread();
    qwen35_session_append(self->session, input, &options, &status);
    PyEval_RestoreThread(w->thread);
    if (w->raised) return -1;
    if (!status.code) return 0;
    if (status.code == Q35_CANCELLED) return 1;
    q35_raise(q35_state_of((PyObject *)self), &status);
    return -1;
}

/* ---- Session ---- */

PyObject *q35_session_make(module_state *state, ModelObject *model, size_t context) {
    qwen35_status status = {0};
    qwen35_session *session = qwen35_session_new(model->model, context, &status);
    if (!session) return q35_raise(state, &status);
    SessionObject *self = (SessionObject *)state->session_type->tp_alloc(state->session_type, 0);
    if (!self) {
        qwen35_session_free(session);
        return NULL;
    }
    self->session = session;
    self->model = Py_NewRef(model);
    atomic_flag_clear(&self->busy);
    return (PyObject *)self;
}

static int session_traverse(SessionObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->model);
    return 0;
}

static void session_dealloc(SessionObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    qwen35_session_free(self->session);
    Py_XDECREF(self->model);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Appends a prompt, which is released, for its own sake: None, or NULL with an exception. */
static PyObject *append(SessionObject *self, prompt_arrays *prompt, watch w) {
    int failed = q35_session_enter(self);
    if (!failed) {
        qwen35_input input = q35_prompt_input(prompt);
        failed = q35_append_watched(self, &input, &w, (qwen35_append_options){0});
        q35_session_leave(self);
    }
    q35_prompt_clear(prompt);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(prefill_doc,
             "prefill(ids, *, position_ids=None, features=None, progress=None)\n\n"
             "Append ids [T]. features: of the image and video tokens among them, in their order. "
             "Interrupted, the session stands where the last whole chunk ended; `position` tells.");

static PyObject *session_prefill(SessionObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ids", "position_ids", "features", "progress", NULL};
    PyObject *ids, *positions = NULL, *features = NULL, *progress = NULL;
    prompt_arrays prompt;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$OOO:prefill", names, &ids, &positions,
                                     &features, &progress) ||
        q35_prompt_parse(&prompt, self, ids, positions, features))
        return NULL;
    return append(self, &prompt, (watch){.progress = progress == Py_None ? NULL : progress});
}

PyDoc_STRVAR(observe_doc,
             "observe(ids, callback)\n\n"
             "Append ids; callback(name, x) sees the input float32 [T, cols] of every matrix "
             "product on the way, before it is made. x is valid during the call alone.");

static PyObject *session_observe(SessionObject *self, PyObject *args) {
    PyObject *ids, *callback;
    prompt_arrays prompt;
    if (!PyArg_ParseTuple(args, "OO:observe", &ids, &callback) ||
        q35_prompt_parse(&prompt, self, ids, NULL, NULL))
        return NULL;
    PyObject *names = ((ModelObject *)self->model)->names;
    return append(self, &prompt, (watch){.observe = callback, .names = names});
}

PyDoc_STRVAR(logits_all_doc,
             "logits_all(ids, *, position_ids=None, features=None) -> float32 [T, V]\n\n"
             "Append ids and return the logits after each.");

static PyObject *session_logits_all(SessionObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ids", "position_ids", "features", NULL};
    PyObject *ids, *positions = NULL, *features = NULL;
    prompt_arrays prompt;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$OO:logits_all", names, &ids, &positions,
                                     &features) ||
        q35_prompt_parse(&prompt, self, ids, positions, features))
        return NULL;
    npy_intp shape[2] = {PyArray_SIZE(prompt.ids),
                         (npy_intp)qwen35_model_vocabulary(((ModelObject *)self->model)->model)};
    PyArrayObject *logits = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (logits && q35_session_enter(self)) {
        Py_CLEAR(logits);
    } else if (logits) {
        watch w = {0};
        qwen35_append_options options = {.all_logits = PyArray_DATA(logits)};
        qwen35_input input = q35_prompt_input(&prompt);
        if (q35_append_watched(self, &input, &w, options)) Py_CLEAR(logits);
        q35_session_leave(self);
    }
    q35_prompt_clear(&prompt);
    return (PyObject *)logits;
}

PyDoc_STRVAR(score_doc, "score(ids) -> (float32 [T], int32 [T])\n\n"
                        "Append ids; log-probability of each under what precedes it, and the most "
                        "likely token at each place.");

static PyObject *session_score(SessionObject *self, PyObject *ids) {
    prompt_arrays prompt;
    if (q35_prompt_parse(&prompt, self, ids, NULL, NULL)) return NULL;
    npy_intp shape[1] = {PyArray_SIZE(prompt.ids)};
    PyArrayObject *logprobs = (PyArrayObject *)PyArray_SimpleNew(1, shape, NPY_FLOAT32);
    PyArrayObject *likely = (PyArrayObject *)PyArray_SimpleNew(1, shape, NPY_INT32);
    PyObject *result = NULL;
    if (logprobs && likely && q35_session_enter(self) == 0) {
        watch w = {0};
        qwen35_append_options options = {.logprobs = PyArray_DATA(logprobs),
                                         .most_likely = PyArray_DATA(likely)};
        qwen35_input input = q35_prompt_input(&prompt);
        int failed = q35_append_watched(self, &input, &w, options);
        q35_session_leave(self);
        if (!failed) result = PyTuple_Pack(2, logprobs, likely);
    }
    q35_prompt_clear(&prompt);
    Py_XDECREF(logprobs);
    Py_XDECREF(likely);
    return result;
}

PyDoc_STRVAR(snapshot_doc,
             "snapshot() -> Snapshot\n\nThis point of the timeline, to restore later.");

static PyObject *session_snapshot(SessionObject *self, PyObject *ignored) {
    (void)ignored;
    module_state *state = q35_state_of((PyObject *)self);
    if (q35_session_enter(self)) return NULL;
    qwen35_status status = {0};
    qwen35_snapshot *snapshot = qwen35_session_snapshot(self->session, &status);
    q35_session_leave(self);
    if (!snapshot) return q35_raise(state, &status);
    SnapshotObject *object =
        (SnapshotObject *)state->snapshot_type->tp_alloc(state->snapshot_type, 0);
    if (!object) {
        qwen35_snapshot_free(snapshot);
        return NULL;
    }
    object->snapshot = snapshot;
    object->model = Py_NewRef(self->model);
    return (PyObject *)object;
}

PyDoc_STRVAR(
    restore_doc,
    "restore(snapshot)\n\nGo back (or over) to a snapshot of any session of the same model.");

static PyObject *session_restore(SessionObject *self, PyObject *argument) {
    module_state *state = q35_state_of((PyObject *)self);
    if (!Py_IS_TYPE(argument, state->snapshot_type))
        return PyErr_Format(PyExc_TypeError, "restore: expected a Snapshot, got %s",
                            Py_TYPE(argument)->tp_name);
    if (q35_session_enter(self)) return NULL;
    qwen35_status status = {0};
    int failed =
        qwen35_session_restore(self->session, ((SnapshotObject *)argument)->snapshot, &status);
    q35_session_leave(self);
    if (failed) return q35_raise(state, &status);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(fork_doc, "fork() -> Session\n\nA second session at this point; K/V pages are shared "
                       "until either writes.");

static PyObject *session_fork(SessionObject *self, PyObject *ignored) {
    (void)ignored;
    module_state *state = q35_state_of((PyObject *)self);
    if (q35_session_enter(self)) return NULL;
    qwen35_status status = {0};
    qwen35_session *fork = qwen35_session_fork(self->session, &status);
    q35_session_leave(self);
    if (!fork) return q35_raise(state, &status);
    SessionObject *object = (SessionObject *)state->session_type->tp_alloc(state->session_type, 0);
    if (!object) {
        qwen35_session_free(fork);
        return NULL;
    }
    object->session = fork;
    object->model = Py_NewRef(self->model);
    atomic_flag_clear(&object->busy);
    return (PyObject *)object;
}

PyDoc_STRVAR(dump_doc,
             "dump() -> dict[str, ndarray]\n\nThe whole timeline as arrays, to write to a file.");

static PyObject *session_dump(SessionObject *self, PyObject *ignored) {
    (void)ignored;
    if (q35_session_enter(self)) return NULL;
    npy_intp shape[1] = {(npy_intp)qwen35_session_dump_bytes(self->session)};
    PyArrayObject *bytes = (PyArrayObject *)PyArray_SimpleNew(1, shape, NPY_UINT8);
    if (bytes) qwen35_session_dump(self->session, PyArray_DATA(bytes));
    q35_session_leave(self);
    return bytes ? Py_BuildValue("{s:N}", "timeline", bytes) : NULL;
}

PyDoc_STRVAR(undump_doc, "undump(arrays)\n\nBecome the timeline that `dump` wrote. Checked: a "
                         "foreign or cut dump is an error.");

static PyObject *session_undump(SessionObject *self, PyObject *arrays) {
    PyObject *item = PyMapping_GetItemString(arrays, "timeline");
    if (!item) return NULL;
    PyArrayObject *bytes =
        (PyArrayObject *)PyArray_FROMANY(item, NPY_UINT8, 1, 1, NPY_ARRAY_IN_ARRAY);
    Py_DECREF(item);
    if (!bytes) return NULL;
    if (q35_session_enter(self)) {
        Py_DECREF(bytes);
        return NULL;
    }
    qwen35_status status = {0};
    int failed = qwen35_session_undump(self->session, PyArray_DATA(bytes),
                                       (size_t)PyArray_SIZE(bytes), &status);
    q35_session_leave(self);
    Py_DECREF(bytes);
    if (failed) return q35_raise(q35_state_of((PyObject *)self), &status);
    Py_RETURN_NONE;
}

static PyObject *session_position(SessionObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(qwen35_session_position(self->session));
}

static PyObject *session_context(SessionObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(qwen35_session_context(self->session));
}

static PyObject *session_nbytes(SessionObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(qwen35_session_bytes(self->session));
}

static PyObject *session_ids(SessionObject *self, void *closure) {
    (void)closure;
    if (q35_session_enter(self)) return NULL;
    npy_intp shape[1] = {(npy_intp)qwen35_session_position(self->session)};
    PyArrayObject *ids = (PyArrayObject *)PyArray_SimpleNew(1, shape, NPY_INT32);
    if (ids && shape[0])
        memcpy(PyArray_DATA(ids), qwen35_session_ids(self->session),
               (size_t)shape[0] * sizeof(int32_t));
    q35_session_leave(self);
    return (PyObject *)ids;
}

static PyObject *session_logits(SessionObject *self, void *closure) {
    (void)closure;
    if (q35_session_enter(self)) return NULL;
    const float *logits;
    watch w = {0};
    qwen35_watch seen = {.poll = q35_watch_poll, .arg = &w};
    qwen35_status status = {0};
    w.thread = PyEval_SaveThread();
    qwen35_session_logits(self->session, &seen, &logits, &status);
    PyEval_RestoreThread(w.thread);
    npy_intp shape[1] = {(npy_intp)qwen35_model_vocabulary(((ModelObject *)self->model)->model)};
    PyObject *result = NULL;
    if (status.code && !w.raised) q35_raise(q35_state_of((PyObject *)self), &status);
    if (!status.code)
        result = logits ? PyArray_SimpleNew(1, shape, NPY_FLOAT32) : Py_NewRef(Py_None);
    if (result && logits)
        memcpy(PyArray_DATA((PyArrayObject *)result), logits, (size_t)shape[0] * sizeof(float));
    q35_session_leave(self);
    return result;
}

static PyObject *session_has_logits(SessionObject *self, void *closure) {
    (void)closure;
    return PyBool_FromLong(qwen35_session_has_logits(self->session));
}

PyDoc_STRVAR(generate_doc,
             "generate(ids, *, max_tokens=-1, temperature=0.0, ...) -> NativeStream\n\n"
             "Append ids and decode: a stream of (id, logprob, [(id, logprob), ...]). Arguments as "
             "in the stub.");

static PyMethodDef session_methods[] = {
    {"prefill", (PyCFunction)(void (*)(void))session_prefill, METH_VARARGS | METH_KEYWORDS,
     prefill_doc},
    {"observe", (PyCFunction)session_observe, METH_VARARGS, observe_doc},
    {"logits_all", (PyCFunction)(void (*)(void))session_logits_all, METH_VARARGS | METH_KEYWORDS,
     logits_all_doc},
    {"score", (PyCFunction)session_score, METH_O, score_doc},
    {"snapshot", (PyCFunction)session_snapshot, METH_NOARGS, snapshot_doc},
    {"restore", (PyCFunction)session_restore, METH_O, restore_doc},
    {"fork", (PyCFunction)session_fork, METH_NOARGS, fork_doc},
    {"dump", (PyCFunction)session_dump, METH_NOARGS, dump_doc},
    {"undump", (PyCFunction)session_undump, METH_O, undump_doc},
    {"generate", (PyCFunction)(void (*)(void))q35_stream_make, METH_VARARGS | METH_KEYWORDS,
     generate_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef session_getset[] = {
    {"position", (getter)session_position, NULL, "Tokens in the timeline.", NULL},
    {"context", (getter)session_context, NULL, "Tokens that fit.", NULL},
    {"nbytes", (getter)session_nbytes, NULL, "Bytes held by this session, shared pages counted.",
     NULL},
    {"ids", (getter)session_ids, NULL, "A copy of the tokens in the timeline, int32 [position].",
     NULL},
    {"logits", (getter)session_logits, NULL,
     "Logits after the last token, float32 [V], or None; computed when first asked for.", NULL},
    {"has_logits", (getter)session_has_logits, NULL,
     "Whether `logits` is not None; computes nothing.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot session_slots[] = {
    {Py_tp_doc, "One timeline, one user at a time (BusyError otherwise). Made by Model.session()."},
    {Py_tp_dealloc, session_dealloc},
    {Py_tp_traverse, session_traverse},
    {Py_tp_methods, session_methods},
    {Py_tp_getset, session_getset},
    {0, NULL},
};

PyType_Spec q35_session_spec = {
    .name = "qwen35._core.Session",
    .basicsize = sizeof(SessionObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = session_slots,
};

/* ---- Snapshot ---- */

static int snapshot_traverse(SnapshotObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->model);
    return 0;
}

static void snapshot_dealloc(SnapshotObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    qwen35_snapshot_free(self->snapshot);
    Py_XDECREF(self->model);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *snapshot_position(SnapshotObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(qwen35_snapshot_position(self->snapshot));
}

static PyObject *snapshot_nbytes(SnapshotObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(qwen35_snapshot_bytes(self->snapshot));
}

static PyGetSetDef snapshot_getset[] = {
    {"position", (getter)snapshot_position, NULL, "Tokens in the timeline at this point.", NULL},
    {"nbytes", (getter)snapshot_nbytes, NULL, "Bytes held, shared K/V pages counted.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot snapshot_slots[] = {
    {Py_tp_doc, "A point in a session's timeline. Recurrent state copied, K/V pages shared."},
    {Py_tp_dealloc, snapshot_dealloc},
    {Py_tp_traverse, snapshot_traverse},
    {Py_tp_getset, snapshot_getset},
    {0, NULL},
};

PyType_Spec q35_snapshot_spec = {
    .name = "qwen35._core.Snapshot",
    .basicsize = sizeof(SnapshotObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = snapshot_slots,
};
