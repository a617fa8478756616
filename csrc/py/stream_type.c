/* stream_type.c: _core.NativeStream: the decode loop. One next() = feed the last token, draw the
 * next; the GIL is taken once a token. Also _core.sample, the sampler on its own, for tests. */
#include "stream.h"

#include <string.h>
#include <time.h>

/* ---- construction ---- */

/* {id: bias} -> array */
static int parse_bias(StreamObject *self, PyObject *mapping, size_t V) {
    if (!mapping || mapping == Py_None) return 0;
    PyObject *items = PyMapping_Items(mapping);
    if (!items) return -1;
    Py_ssize_t n = PyList_GET_SIZE(items);
    self->bias = PyMem_Calloc((size_t)n + 1, sizeof *self->bias);
    if (!self->bias) PyErr_NoMemory();
    for (Py_ssize_t i = 0; self->bias && i < n; i++) {
        int id;
        float add;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(items, i), "if;logit_bias: expected {token id: bias}",
                              &id, &add))
            break;
        if (id < 0 || (size_t)id >= V) {
            PyErr_Format(PyExc_ValueError, "logit_bias: token id %d, expected 0 <= id < %zu", id,
                         V);
            break;
        }
        self->bias[i] = (qwen35_bias){id, add};
    }
    Py_DECREF(items);
    self->sampling.bias = self->bias;
    self->sampling.n_bias = (size_t)n;
    return PyErr_Occurred() ? -1 : 0;
}

/* An iterable of token ids -> array on the heap */
static int parse_ids(PyObject *object, const char *what, size_t V, int32_t **ids, size_t *n) {
    PyObject *list = PySequence_List(object);
    if (!list) return -1;
    *n = (size_t)PyList_GET_SIZE(list);
    *ids = PyMem_Calloc(*n + 1, sizeof **ids);
    if (!*ids) PyErr_NoMemory();
    for (size_t i = 0; *ids && i < *n; i++) {
        long id = PyLong_AsLong(PyList_GET_ITEM(list, (Py_ssize_t)i));
        if (id == -1 && PyErr_Occurred()) break;
        if (id < 0 || (size_t)id >= V) {
            PyErr_Format(PyExc_ValueError, "%s[%zu]: token id %ld, expected 0 <= id < %zu", what, i,
                         id, V);
            break;
        }
        (*ids)[i] = (int32_t)id;
    }
    Py_DECREF(list);
    return PyErr_Occurred() ? -1 : 0;
}

/* Pixels are read here and now; features are what they would become. */
static int parse_prompt(StreamObject *self, PyObject *ids, PyObject *pixels, PyObject *grids,
                        PyObject *features, PyObject *positions) {
    if (pixels == Py_None)
        return q35_prompt_parse(&self->prompt, self->session, ids, positions, features);
    if (!positions || positions == Py_None || (features && features != Py_None)) {
        PyErr_SetString(PyExc_ValueError,
                        "pixels go with grid_thw and position_ids, and without features");
        return -1;
    }
    features = q35_encode_pixels((ModelObject *)self->session->model, pixels, grids, NULL);
    if (!features) return -1;
    int failed = q35_prompt_parse(&self->prompt, self->session, ids, positions, features);
    Py_DECREF(features);
    return failed;
}

PyObject *q35_stream_make(SessionObject *session, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ids",
                            "pixels",
                            "grid_thw",
                            "features",
                            "position_ids",
                            "max_tokens",
                            "min_tokens",
                            "temperature",
                            "top_p",
                            "top_k",
                            "min_p",
                            "presence_penalty",
                            "frequency_penalty",
                            "repetition_penalty",
                            "seed",
                            "logit_bias",
                            "stop_token_ids",
                            "logprobs",
                            "progress",
                            NULL};
    PyObject *ids, *pixels = Py_None, *grids = Py_None, *features = NULL, *positions = NULL,
                   *bias = NULL, *stops = NULL, *progress = NULL;
    module_state *state = q35_state_of((PyObject *)session);
    StreamObject *self = (StreamObject *)state->stream_type->tp_alloc(state->stream_type, 0);
    if (!self) return NULL;
    self->session = (SessionObject *)Py_NewRef(session);
    atomic_init(&self->cancel, 0);
    qwen35_sampling *s = &self->sampling;
    s->top_p = s->repetition_penalty = 1.0f;
    self->max_tokens = self->n_logprobs = -1;
    Py_ssize_t top_k = 0;
    unsigned long long seed = 0;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O|$OOOOnnffnffffKOOnO:generate", names, &ids, &pixels, &grids, &features,
            &positions, &self->max_tokens, &self->min_tokens, &s->temperature, &s->top_p, &top_k,
            &s->min_p, &s->presence_penalty, &s->frequency_penalty, &s->repetition_penalty, &seed,
            &bias, &stops, &self->n_logprobs, &progress))
        goto fail;
    size_t V = qwen35_model_vocabulary(((ModelObject *)session->model)->model);
    s->top_k = top_k > 0 ? (size_t)top_k : 0;
    self->seed = seed;
    if (self->n_logprobs > (Py_ssize_t)V) self->n_logprobs = (Py_ssize_t)V;
    if (parse_prompt(self, ids, pixels, grids, features, positions)) goto fail;
    self->rest = q35_prompt_input(&self->prompt);
    if (parse_bias(self, bias, V)) goto fail;
    if (stops && parse_ids(stops, "stop_token_ids", V, &self->stops, &self->n_stops)) goto fail;
    if (progress && progress != Py_None) self->progress = Py_NewRef(progress);
    self->work = PyMem_Malloc(2 * V * sizeof *self->work);
    if (self->work) return (PyObject *)self;
    PyErr_NoMemory();
fail:
    Py_DECREF(self);
    return NULL;
}

static int stream_traverse(StreamObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->session);
    Py_VISIT(self->progress);
    return 0;
}

static int stream_clear(StreamObject *self) {
    Py_CLEAR(self->progress);
    return 0;
}

static void stream_dealloc(StreamObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    stream_clear(self);
    Py_XDECREF(self->session);
    q35_prompt_clear(&self->prompt);
    PyMem_Free(self->stops);
    PyMem_Free(self->forced);
    PyMem_Free(self->bias);
    PyMem_Free(self->work);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- one token ---- */

double q35_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static size_t vocabulary(const StreamObject *self) {
    return qwen35_model_vocabulary(((ModelObject *)self->session->model)->model);
}

double *q35_stream_phase(StreamObject *self) {
    return self->produced ? &self->decode_s : &self->prefill_s;
}

void q35_stream_note(StreamObject *self, size_t n) {
    if (self->started) return;
    self->prefilled += n;
    self->started = self->rest.T == 0;
    self->n_prompt = qwen35_session_position(self->session->session);
}

/* Appends the prompt, or the last token. 0; -1 with an exception; 1 when the stream ended here. */
static int feed(StreamObject *self) {
    watch w = {.cancel = &self->cancel, .progress = self->started ? NULL : self->progress};
    size_t before = qwen35_session_position(self->session->session);
    int result = q35_append_watched(self->session, &self->rest, &w, (qwen35_append_options){0});
    if (result == 0) self->rest.T = 0;
    q35_stream_note(self, qwen35_session_position(self->session->session) - before);
    if (result < 0) return -1;
    if (PyErr_CheckSignals()) return -1;
    if (result > 0 || atomic_load(&self->cancel)) {
        self->finish = "cancelled";
        return 1;
    }
    return 0;
}

int q35_stream_goes_on(StreamObject *self) {
    if (self->max_tokens == 0) {
        self->finish = "length";
        return 0;
    }
    if (qwen35_session_has_logits(self->session->session)) return 1;
    PyErr_SetString(PyExc_ValueError,
                    "generate: the session holds no logits; append at least one token first");
    return -1;
}

int q35_stream_draw(StreamObject *self, qwen35_draw *draw) {
    int early = (Py_ssize_t)self->produced < self->min_tokens;
    self->sampling.banned = self->stops;
    self->sampling.n_banned = early ? self->n_stops : 0;
    *draw = (qwen35_draw){.session = self->session->session,
                          .sampling = &self->sampling,
                          .logits = self->n_logprobs >= 0,
                          .n_prompt = self->n_prompt,
                          .coin = qwen35_coin(self->seed, self->produced),
                          .work = self->work};
    if (self->n_forced) {
        draw->sampling = NULL;
        draw->id = self->forced[0];
        memmove(self->forced, self->forced + 1, --self->n_forced * sizeof *self->forced);
    }
    return draw->sampling || draw->logits;
}

static int is_stop(const StreamObject *self, int32_t id) {
    for (size_t i = 0; i < self->n_stops; i++)
        if (self->stops[i] == id) return 1;
    return 0;
}

static PyObject *token_tuple(const StreamObject *self, int32_t id) {
    const size_t V = vocabulary(self);
    PyObject *top = PyList_New(0);
    if (!top || self->n_logprobs < 0) return top ? Py_BuildValue("(iON)", id, Py_None, top) : NULL;
    const float *logits; /* there since the draw */
    qwen35_session_logits(self->session->session, NULL, &logits, &(qwen35_status){0});
    size_t n = (size_t)self->n_logprobs;
    int32_t *ids = PyMem_Malloc((n + 1) * sizeof *ids);
    float *logprobs = PyMem_Malloc((n + 1) * sizeof *logprobs);
    if (!ids || !logprobs) {
        PyErr_NoMemory();
        Py_CLEAR(top);
    }
    if (top) qwen35_top_logprobs(logits, V, n, ids, logprobs);
    for (size_t i = 0; top && i < n; i++) {
        PyObject *pair = Py_BuildValue("(id)", ids[i], (double)logprobs[i]);
        if (!pair || PyList_Append(top, pair)) Py_CLEAR(top);
        Py_XDECREF(pair);
    }
    PyMem_Free(ids);
    PyMem_Free(logprobs);
    return top ? Py_BuildValue("(idN)", id, qwen35_logprob(logits, V, id), top) : NULL;
}

PyObject *q35_stream_deliver(StreamObject *self, int32_t id) {
    if (id < 0)
        return PyErr_Format(PyExc_ValueError,
                            "no token is left to draw at step %zu: logit_bias bans all of them",
                            self->produced);
    PyObject *token = token_tuple(self, id);
    if (!token) return NULL;
    const qwen35_session *session = self->session->session;
    self->last = id;
    self->rest = (qwen35_input){.ids = &self->last, .T = 1};
    self->produced++;
    if (is_stop(self, id))
        self->finish = "stop";
    else if (self->produced == (size_t)self->max_tokens ||
             qwen35_session_position(session) >= qwen35_session_context(session))
        self->finish = "length";
    return token;
}

/* Draws with the GIL dropped. 0; -1 with an exception; 1 when the stream ended here. */
static int draw_next(StreamObject *self, qwen35_draw *draw) {
    watch w = {.cancel = &self->cancel};
    qwen35_watch seen = {.poll = q35_watch_poll, .arg = &w};
    qwen35_status status = {0};
    w.thread = PyEval_SaveThread();
    qwen35_draw_one(draw, &seen, &status);
    PyEval_RestoreThread(w.thread);
    if (w.raised) return -1;
    if (status.code == Q35_CANCELLED)
        self->finish = "cancelled";
    else if (status.code)
        q35_raise(q35_state_of((PyObject *)self), &status);
    return !status.code ? 0 : self->finish ? 1 : -1;
}

static PyObject *advance(StreamObject *self) {
    qwen35_draw draw;
    if (feed(self) || q35_stream_goes_on(self) <= 0) return NULL;
    if (q35_stream_draw(self, &draw) && draw_next(self, &draw)) return NULL;
    return q35_stream_deliver(self, draw.id);
}

static PyObject *stream_next(StreamObject *self) {
    if (self->finish) return NULL;
    if (atomic_load(&self->cancel)) {
        self->finish = "cancelled";
        return NULL;
    }
    if (q35_session_enter(self->session)) return NULL;
    double start = q35_seconds(), *phase = q35_stream_phase(self);
    PyObject *token = advance(self);
    *phase += q35_seconds() - start;
    q35_session_leave(self->session);
    return token;
}

PyDoc_STRVAR(cancel_doc,
             "cancel()\n\nFrom any thread: end at the next poll with finish_reason 'cancelled'.");

static PyObject *stream_cancel(StreamObject *self, PyObject *ignored) {
    (void)ignored;
    atomic_store(&self->cancel, 1);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(force_doc, "force(ids)\n\nThese tokens come next instead of sampled ones.");

static PyObject *stream_force(StreamObject *self, PyObject *sequence) {
    size_t V = vocabulary(self), n = 0;
    int32_t *ids = NULL;
    if (parse_ids(sequence, "force: ids", V, &ids, &n)) {
        PyMem_Free(ids);
        return NULL;
    }
    int32_t *queue = PyMem_Realloc(self->forced, (self->n_forced + n + 1) * sizeof *queue);
    if (queue) {
        memcpy(queue + self->n_forced, ids, n * sizeof *ids);
        self->forced = queue;
        self->n_forced += n;
    }
    PyMem_Free(ids);
    if (!queue) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *stream_finish_reason(StreamObject *self, void *closure) {
    (void)closure;
    if (!self->finish) Py_RETURN_NONE;
    return PyUnicode_FromString(self->finish);
}

static PyObject *stream_timings(StreamObject *self, void *closure) {
    (void)closure;
    return Py_BuildValue("{s:n,s:d,s:n,s:d}", "prompt_tokens", (Py_ssize_t)self->prefilled,
                         "prefill_s", self->prefill_s, "decode_tokens", (Py_ssize_t)self->produced,
                         "decode_s", self->decode_s);
}

static PyMethodDef stream_methods[] = {
    {"cancel", (PyCFunction)stream_cancel, METH_NOARGS, cancel_doc},
    {"force", (PyCFunction)stream_force, METH_O, force_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef stream_getset[] = {
    {"finish_reason", (getter)stream_finish_reason, NULL,
     "'stop', 'length', 'cancelled', or None while it runs.", NULL},
    {"timings", (getter)stream_timings, NULL, "prompt_tokens, prefill_s, decode_tokens, decode_s.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, "Tokens as they are decoded: (id, logprob, [(id, logprob), ...])."},
    {Py_tp_dealloc, stream_dealloc},
    {Py_tp_traverse, stream_traverse},
    {Py_tp_clear, stream_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, stream_next},
    {Py_tp_methods, stream_methods},
    {Py_tp_getset, stream_getset},
    {0, NULL},
};

PyType_Spec q35_stream_spec = {
    .name = "qwen35._core.NativeStream",
    .basicsize = sizeof(StreamObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = stream_slots,
};

/* ---- sample ---- */

const char q35_sample_doc[] =
    "sample(logits, *, coin, history, n_prompt, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0,\n"
    "       presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0) -> int\n\n"
    "One draw with the sampler's own code, for tests: coin in [0, 1) takes the place of the "
    "generator.";

PyObject *q35_py_sample(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    static char *names[] = {
        "logits", "coin",  "history",          "n_prompt",          "temperature",        "top_p",
        "top_k",  "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", NULL};
    PyObject *logits_object, *history_object;
    double coin;
    Py_ssize_t n_prompt, top_k = 0;
    qwen35_sampling s = {.temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OdOn|$ffnffff:sample", names, &logits_object,
                                     &coin, &history_object, &n_prompt, &s.temperature, &s.top_p,
                                     &top_k, &s.min_p, &s.presence_penalty, &s.frequency_penalty,
                                     &s.repetition_penalty))
        return NULL;
    s.top_k = top_k > 0 ? (size_t)top_k : 0;
    PyArrayObject *logits =
        (PyArrayObject *)PyArray_FROMANY(logits_object, NPY_FLOAT32, 1, 1, NPY_ARRAY_IN_ARRAY);
    PyArrayObject *history = q35_ids_array(history_object);
    PyObject *result = NULL;
    float *work = NULL;
    if (!logits || !history) goto done;
    size_t V = (size_t)PyArray_SIZE(logits), n = (size_t)PyArray_SIZE(history);
    const int32_t *ids = PyArray_DATA(history);
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= 0 && (size_t)ids[i] < V) continue;
        PyErr_Format(PyExc_ValueError, "history[%zu]: token id %d, expected 0 <= id < %zu", i,
                     (int)ids[i], V);
        goto done;
    }
    if (V == 0 || n_prompt < 0 || (size_t)n_prompt > n) {
        PyErr_SetString(PyExc_ValueError,
                        "sample: logits must not be empty, and 0 <= n_prompt <= len(history)");
        goto done;
    }
    work = PyMem_Malloc(2 * V * sizeof *work);
    if (!work) {
        PyErr_NoMemory();
        goto done;
    }
    result = PyLong_FromLong(
        qwen35_sample(&s, PyArray_DATA(logits), V, ids, n, (size_t)n_prompt, coin, work));
done:
    PyMem_Free(work);
    Py_XDECREF(logits);
    Py_XDECREF(history);
    return result;
}
