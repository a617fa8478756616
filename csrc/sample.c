/* sample.c: logits -> penalties -> bias -> temperature -> min-p, top-k, top-p -> one token.
 *
 * The generator is a function of (seed, step), and the draw a function of its coin: a stream can be
 * repeated, and a test can hand in the coin. Names and order are vLLM's. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"
#include "qwen35.h"

/* SplitMix64 (Steele, Lea, Flood 2014) of seed and step; the top 53 bits make the coin. */
double qwen35_coin(uint64_t seed, uint64_t step) {
    uint64_t z = seed + (step + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static size_t argmax(const float *x, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

double qwen35_logprob(const float *logits, size_t V, int32_t id) {
    double top = logits[argmax(logits, V)], sum = 0;
    float part[256];
    for (size_t i = 0; i < V; i += 256) {
        size_t n = V - i < 256 ? V - i : 256;
        for (size_t j = 0; j < n; j++) part[j] = logits[i + j] - (float)top;
        q35_kernel->exp(part, part, n);
        float lane = 0;
        for (size_t j = 0; j < n; j++) lane += part[j];
        sum += lane;
    }
    return (double)logits[id] - top - log(sum);
}

/* ---- a heap of token ids, largest value first, ties to the smaller id ---- */

static int before(const float *value, int32_t a, int32_t b) {
    return value[a] > value[b] || (value[a] == value[b] && a < b);
}

static void sift_down(int32_t *heap, size_t n, size_t i, const float *value) {
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) return;
        if (child + 1 < n && before(value, heap[child + 1], heap[child])) child++;
        if (!before(value, heap[child], heap[i])) return;
        int32_t swap = heap[i];
        heap[i] = heap[child];
        heap[child] = swap;
        i = child;
    }
}

static void heapify(int32_t *heap, size_t n, const float *value) {
    for (size_t i = n / 2; i-- > 0;) sift_down(heap, n, i, value);
}

/* The largest goes to the end of the array, behind the heap that remains. */
static int32_t pop(int32_t *heap, size_t *n, const float *value) {
    int32_t top = heap[0];
    heap[0] = heap[--*n];
    heap[*n] = top;
    sift_down(heap, *n, 0, value);
    return top;
}

void qwen35_top_logprobs(const float *logits, size_t V, size_t n, int32_t *ids, float *logprobs) {
    /* Insertion into a short sorted list: n is a handful, and most tokens fail the first
     * comparison. */
    size_t found = 0;
    for (size_t i = 0; i < V; i++) {
        if (found == n && !(logits[i] > logits[ids[n - 1]])) continue;
        size_t at = found < n ? found++ : n - 1;
        for (; at > 0 && logits[i] > logits[ids[at - 1]]; at--) ids[at] = ids[at - 1];
        ids[at] = (int32_t)i;
    }
    if (!found) return;
    double first = qwen35_logprob(logits, V, ids[0]);
    for (size_t i = 0; i < found; i++)
        logprobs[i] = (float)(first + (double)logits[ids[i]] - (double)logits[ids[0]]);
}

/* repetition weighs every token of the history, presence and frequency those of the answer. seen
 * [V] is overwritten. */
static void apply_penalties(const qwen35_sampling *s, float *logits, const int32_t *history,
                            size_t n, size_t n_prompt, float *seen, size_t V) {
    if (s->repetition_penalty == 1.0f && s->presence_penalty == 0.0f &&
        s->frequency_penalty == 0.0f)
        return;
    memset(seen, 0, V * sizeof *seen);
    /* First count each token in the answer, then treat it where it is met first, from the end. */
    for (size_t i = n_prompt; i < n; i++) seen[history[i]] += 1.0f;
    for (size_t i = n; i-- > 0;) {
        int32_t id = history[i];
        float count = seen[id];
        if (count < 0) continue; /* treated */
        seen[id] = -1;
        if (s->repetition_penalty != 1.0f)
            logits[id] = logits[id] > 0 ? logits[id] / s->repetition_penalty
                                        : logits[id] * s->repetition_penalty;
        logits[id] -= s->frequency_penalty * count + (count > 0 ? s->presence_penalty : 0.0f);
    }
}

/* Cuts the candidates at top_k, top_p and min_p; they end up sorted at the end of `heap`. Returns
   their number, and the sum of their weights. weight [V] is exp(logit / temperature - top). */
static size_t cut(const qwen35_sampling *s, int32_t *heap, size_t V, const float *weight,
                  double all, double *kept) {
    size_t left = V, k = s->top_k && s->top_k < V ? s->top_k : V, n = 0;
    double sum = 0, top_p_of = all;
    heapify(heap, V, weight);
    if (s->top_k && s->top_k < V && s->top_p < 1.0f) { /* top_p is a share of what top_k leaves */
        top_p_of = 0;
        for (size_t i = 0; i < k; i++) top_p_of += weight[pop(heap, &left, weight)];
        left = V;
        heapify(heap, V, weight);
    }
    float floor_weight = s->min_p; /* the likeliest token weighs 1 */
    while (n < k && left > 0) {
        if (n > 0 && (weight[heap[0]] < floor_weight || weight[heap[0]] <= 0)) break;
        sum += weight[pop(heap, &left, weight)];
        n++;
        if (s->top_p < 1.0f && sum >= (double)s->top_p * top_p_of) break;
    }
    *kept = sum;
    return n;
}

int32_t qwen35_sample(const qwen35_sampling *s, const float *given, size_t V,
                      const int32_t *history, size_t n, size_t n_prompt, double coin, float *work) {
    float *logits = work, *other = work + V;
    memcpy(logits, given, V * sizeof *logits);
    apply_penalties(s, logits, history, n, n_prompt, other, V);
    for (size_t i = 0; i < s->n_bias; i++) logits[s->bias[i].id] += s->bias[i].add;
    for (size_t i = 0; i < s->n_banned; i++) logits[s->banned[i]] = -INFINITY;
    size_t best = argmax(logits, V);
    if (!(logits[best] > -INFINITY)) return -1;
    if (s->temperature == 0.0f) return (int32_t)best;

    float top = logits[best];
    double all = 0;
    for (size_t i = 0; i < V; i++) logits[i] = (logits[i] - top) / s->temperature;
    q35_kernel->exp(other, logits, V);
    for (size_t i = 0; i < V; i++) {
        if (!(logits[i] > -87.0f))
            other[i] = 0; /* the kernel clamps there; so small a weight is never drawn */
        all += other[i];
    }
    const float *weight = other;
    int32_t *heap = (int32_t *)work; /* the logits are not needed any more */
    for (size_t i = 0; i < V; i++) heap[i] = (int32_t)i;
    int cutting = (s->top_k && s->top_k < V) || s->top_p < 1.0f || s->min_p > 0.0f;
    double kept = all;
    size_t count = cutting ? cut(s, heap, V, weight, all, &kept) : V;
    double target = coin * kept, sum = 0;
    for (size_t i = 0; i < count; i++) {
        int32_t id =
            cutting ? heap[V - 1 - i] : heap[i]; /* popped in order from the end: likeliest first */
        sum += weight[id];
        if (sum > target) return id;
    }
    return (int32_t)best; /* rounding left the coin beyond the last one */
}
