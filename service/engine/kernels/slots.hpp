// What the steps of all models of fixed state share: what a model remembers of a sequence stands in the slot that the
// sequence has, in fp32, and is zero before its first token.
#pragma once

#include "linear.hpp"

extern "C" {

// Mirrored in structures.py (layout.hpp). A chunk is the tokens of one sequence in this step, one behind the other.
struct SlotStep {
    int64_t num_chunks, num_tokens, num_samples, num_threads;
    const int64_t *token_ids, *chunks;           // of each token: itself, and the chunk that it is of
    const int64_t *starts, *slots, *positions;  // of each chunk: its first token, its slot, its first token's position
    const int64_t* samples;                     // indices of the tokens whose logits are wanted
    float *x, *wide, *side, *logits;            // for each token
    Lane* lanes;                                // for each token: what the next product reads
    float* scales;                              // of the lanes
};
}

namespace {

// Where a chunk ends: the next one's first token, or the step's end.
INLINE int64_t end_of(const SlotStep& step, int64_t chunk) {
    return chunk + 1 < step.num_chunks ? step.starts[chunk + 1] : step.num_tokens;
}

// The rows that the next product reads: `row(m)(i)` gives a vector of row m from i on.
template <class E, class Row>
Rows pack(const SlotStep& step, int64_t M, int64_t n, Row row) {
    return Rows::pack<E>(step.lanes, step.scales, M, n, row);
}

// Rows that stand one behind the other.
INLINE auto rows_of(const float* x, int64_t n) {
    return [=](int64_t m) { return [from = x + m * n](int64_t i) { return load(from + i); }; };
}

// To x (T, C), from a table (V, C).
INLINE void embed(const SlotStep& step, const float* table, int64_t C) {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < step.num_tokens; ++t)
        std::memcpy(step.x + t * C, table + step.token_ids[t] * C, C * sizeof(float));
}

// The logits; `row(t)(i)` gives what the head reads of token t.
template <class E, class Row>
void project(const SlotStep& step, const Linear& head, Row row) {
    const auto sampled = [&](int64_t m) { return row(step.samples[m]); };
    multiply<E>(head, pack<E>(step, step.num_samples, head.K, sampled), step.logits);
}

}  // namespace
