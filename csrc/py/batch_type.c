/* batch_type.c: _core.Batch: streams that go forward together. One step = one forward call for all
 * of them, then a draw for each whose prompt is read; the GIL is dropped around both. */
#include "stream.h"

typedef struct BatchObject {
    PyObject_HEAD qwen35_batch *batch;
    PyObject *model; /* ModelObject */
    atomic_flag busy;
} BatchObject;

/* One step under way; index k counts the streams that run, `place` is where they were given. */
typedef struct step {
    BatchObject *batch;
    StreamObject *streams[QWEN35_MAX_BATCH];
    size_t places[QWEN35_MAX_BATCH], n;
    watch watch;
} step;

PyObject *q35_batch_make(module_state *state, ModelObject *model, size_t size) {
    qwen35_status status = {0};
    qwen35_batch *batch = qwen35_batch_new(model->model, size, &status);
    if (!batch) return q35_raise(state, &status);
    BatchObject *self = (BatchObject *)state->batch_type->tp_alloc(state->batch_type, 0);
    if (!self) {
        qwen35_batch_free(batch);
        return NULL;
    }
    self->batch = batch;
    self->model = Py_NewRef(model);
    atomic_flag_clear(&self->busy);
    return (PyObject *)self;
}

static int batch_traverse(BatchObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->model);
    return 0;
}

static void batch_dealloc(BatchObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    qwen35_batch_free(self->batch);
    Py_XDECREF(self->model);
    type->tp_free(self);
    Py_DECREF(type);
}

/* A stream that is cancelled alone leaves after the step; the step stops when all of them are. */
static int poll_step(void *arg) {
    step *s = arg;
    size_t cancelled = 0;
    for (size_t k = 0; k < s->n; k++) cancelled += atomic_load(&s->streams[k]->cancel) != 0;
    return cancelled == s->n || q35_watch_poll(&s->watch);
}

/* What a part of the step came to. 0; 1 when cancelled, which ends the streams; -1 with an
   exception. */
static int settle(step *s, const qwen35_status *status) {
    for (size_t k = 0; k < s->n && status->code == Q35_CANCELLED; k++)
        s->streams[k]->finish = "cancelled";
    if (s->watch.raised || PyErr_CheckSignals()) return -1;
    if (status->code && status->code != Q35_CANCELLED)
        return q35_raise(q35_state_of((PyObject *)s->batch), status), -1;
    return status->code ? 1 : 0;
}

/* Every session reads its share. 0; 1 when cancelled; -1 with an exception. Either of these ends
   the streams: their sessions are empty. */
static int read_all(step *s) {
    qwen35_session *sessions[QWEN35_MAX_BATCH];
    qwen35_input inputs[QWEN35_MAX_BATCH];
    qwen35_status status = {0};
    for (size_t k = 0; k < s->n; k++) {
        sessions[k] = s->streams[k]->session->session;
        inputs[k] = s->streams[k]->rest;
    }
    s->watch.thread = PyEval_SaveThread();
    qwen35_batch_step(s->batch->batch, sessions, inputs, s->n, poll_step, s, &status);
    PyEval_RestoreThread(s->watch.thread);
    for (size_t k = 0; k < s->n && !status.code; k++) {
        StreamObject *stream = s->streams[k];
        size_t n = stream->rest.T - inputs[k].T;
        stream->rest = inputs[k];
        q35_stream_note(stream, n);
    }
    return settle(s, &status);
}

/* The next token of every stream that has read all it was given, into ids; `next` tells which. As
   read_all, but that the sessions are what they were. */
static int choose_all(step *s, int32_t *ids, int *next) {
    qwen35_draw draws[QWEN35_MAX_BATCH];
    size_t from[QWEN35_MAX_BATCH], n = 0;
    qwen35_watch seen = {.poll = poll_step, .arg = s};
    qwen35_status status = {0};
    for (size_t k = 0; k < s->n; k++) {
        StreamObject *stream = s->streams[k];
        next[k] = stream->rest.T == 0 ? q35_stream_goes_on(stream) : 0;
        if (next[k] < 0) return -1;
        if (!next[k]) continue;
        from[n] = k;
        int open = q35_stream_draw(stream, &draws[n]);
        ids[k] = draws[n].id;
        n += (size_t)open;
    }
    s->watch.thread = PyEval_SaveThread();
    qwen35_batch_draw(s->batch->batch, draws, n, &seen, &status);
    PyEval_RestoreThread(s->watch.thread);
    for (size_t i = 0; i < n; i++) ids[from[i]] = draws[i].id;
    return settle(s, &status);
}

/* Fills `tokens`, a list of None. */
static int run_step(step *s, PyObject *tokens) {
    double *phases[QWEN35_MAX_BATCH], start = q35_seconds();
    int32_t ids[QWEN35_MAX_BATCH];
    int next[QWEN35_MAX_BATCH];
    for (size_t k = 0; k < s->n; k++) phases[k] = q35_stream_phase(s->streams[k]);
    int failed = read_all(s);
    if (failed) return failed < 0 ? -1 : 0;
    failed = choose_all(s, ids, next);
    double took = q35_seconds() - start;
    for (size_t k = 0; k < s->n; k++) *phases[k] += took;
    if (failed) return failed < 0 ? -1 : 0;
    for (size_t k = 0; k < s->n; k++) {
        if (!next[k]) continue;
        PyObject *token = q35_stream_deliver(s->streams[k], ids[k]);
        if (!token || PyList_SetItem(tokens, (Py_ssize_t)s->places[k], token)) return -1;
    }
    return 0;
}

/* Enters the sessions of the streams that still run. 0, or -1 with none of them entered. */
static int enter_all(step *s, PyObject *streams) {
    module_state *state = q35_state_of((PyObject *)s->batch);
    size_t n = (size_t)PyTuple_GET_SIZE(streams), size = qwen35_batch_size(s->batch->batch);
    if (n > size) {
        PyErr_Format(PyExc_ValueError, "step: %zu streams, the batch was made for %zu", n, size);
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        StreamObject *stream = (StreamObject *)PyTuple_GET_ITEM(streams, (Py_ssize_t)i);
        if (!Py_IS_TYPE(stream, state->stream_type)) {
            PyErr_Format(PyExc_TypeError, "step: streams[%zu] is no NativeStream", i);
            goto fail;
        }
        if (stream->session->model != s->batch->model) {
            PyErr_Format(PyExc_ValueError, "step: streams[%zu] belongs to another model", i);
            goto fail;
        }
        if (!stream->finish && atomic_load(&stream->cancel)) stream->finish = "cancelled";
        if (stream->finish) continue;
        if (q35_session_enter(stream->session)) goto fail;
        s->streams[s->n] = stream;
        s->places[s->n++] = i;
    }
    return 0;
fail:
    while (s->n > 0) q35_session_leave(s->streams[--s->n]->session);
    return -1;
}

PyDoc_STRVAR(step_doc,
             "step(streams) -> list\n\nOne forward call: every stream reads its last token or a "
             "part of its prompt, and says the next token if that was all. One entry a stream: "
             "what next() would give, or None; finish_reason tells whether more comes. "
             "Interrupted, or with all of them cancelled, the streams end; sessions that were "
             "reading are empty.");

static PyObject *batch_step(BatchObject *self, PyObject *argument) {
    PyObject *streams = PySequence_Tuple(argument), *tokens = NULL;
    step s = {.batch = self};
    if (!streams) return NULL;
    if (atomic_flag_test_and_set(&self->busy)) {
        PyErr_SetString(q35_state_of((PyObject *)self)->busy_error,
                        "another thread is using this batch");
        Py_DECREF(streams);
        return NULL;
    }
    if (enter_all(&s, streams) == 0) {
        tokens = PyList_New(PyTuple_GET_SIZE(streams));
        for (Py_ssize_t i = 0; tokens && i < PyList_GET_SIZE(tokens); i++)
            PyList_SET_ITEM(tokens, i, Py_NewRef(Py_None));
        if (tokens && run_step(&s, tokens)) Py_CLEAR(tokens);
        for (size_t k = 0; k < s.n; k++) q35_session_leave(s.streams[k]->session);
    }
    atomic_flag_clear(&self->busy);
    Py_DECREF(streams);
    return tokens;
}

static PyObject *batch_size(BatchObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(qwen35_batch_size(self->batch));
}

static PyMethodDef batch_methods[] = {
    {"step", (PyCFunction)batch_step, METH_O, step_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef batch_getset[] = {
    {"size", (getter)batch_size, NULL, "Streams that a step can take.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot batch_slots[] = {
    {Py_tp_doc, "Many streams, one forward call a step. Made by Model.batch()."},
    {Py_tp_dealloc, batch_dealloc},
    {Py_tp_traverse, batch_traverse},
    {Py_tp_methods, batch_methods},
    {Py_tp_getset, batch_getset},
    {0, NULL},
};

PyType_Spec q35_batch_spec = {
    .name = "qwen35._core.Batch",
    .basicsize = sizeof(BatchObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = batch_slots,
};
